"""Kernels of a step become terms: by name and place, and the terms add up to the step whatever overlapped."""

import random

import pytest

from tplab.topology.verification.kernels import TERMS, Kernel, named, short_name, term_of, times_of

NORM = "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>(int)"
GEMM = "nvjet_sm90_tst_192x192_64x4_2x1_v_bz_coopB_TNN"
ARGMAX = "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::ArgMaxOps<float>>>(float)"


@pytest.mark.parametrize(
    ("name", "term"),
    [
        (GEMM, "weights"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16>(Params)", "weights"),
        ("std::enable_if<true, void>::type internal::gemvx::kernel<int, int, __nv_bfloat16>(x)", "weights"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int>(x)", "weights"),
        ("_gemv_kernel", "weights"),
        ("_gate_up_kernel", "weights"),
        ("_few_kernel", "weights"),
        ("aten::linear", "weights"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128>>(x)", "attention"),
        ("_decode_attention_kernel", "attention"),
        ("_combine_kernel", "attention"),
        ("aten::scaled_dot_product_attention", "attention"),
        (NORM, "norms and elementwise"),
        ("_norm_kernel", "norms and elementwise"),
        ("_rope_cache_kernel", "norms and elementwise"),
        ("_silu_mul_kernel", "norms and elementwise"),
        ("Memset (Device)", "norms and elementwise"),
        ("Memcpy DtoH (Device -> Pinned)", "norms and elementwise"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<bf16>(x)", "norms and elementwise"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "all-reduce"),
        ("ncclDevKernel_AllGather_RING_LL(x)", "all-reduce"),
        ("void (anonymous namespace)::two_shot_all_reduce_kernel_inplace<__nv_bfloat16, 16>(x)", "all-reduce"),
        ("gloo:all_reduce", "all-reduce"),
        ("one_shot_kernel", "all-reduce"),
        ("add_rms_norm_kernel", "all-reduce"),
        ("c10d::_allgather_base_", "all-reduce"),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "hops"),
        ("gloo:send", "hops"),
        ("c10d::recv_", "hops"),
        ("kernel_of_tomorrow", "other"),
    ],
)
def test_terms_by_name(name: str, term: str) -> None:
    assert term_of(name) == term


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (NORM, "vectorized_layer_norm_kernel"),
        (GEMM, GEMM),
        ("void cutlass::Kernel2<x>(y)", "cutlass::Kernel2"),
        ("Memset (Device)", "Memset"),
        ("aten::linear", "aten::linear"),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name) == short


def step(*names: str) -> list[Kernel]:
    """Kernels of a millisecond each, one after another, half a millisecond apart."""
    return [Kernel(name, 1.5e-3 * place, 1.5e-3 * place + 1e-3) for place, name in enumerate(names)]


def test_the_last_product_is_the_heads_and_what_follows_is_sampling() -> None:
    names = (NORM, GEMM, "_combine_kernel", GEMM, "splitKreduce_kernel", NORM, GEMM, "splitKreduce_kernel", ARGMAX)
    kernels = step(*names, "ncclDevKernel_AllGather_RING_LL", "strange", "Memcpy DtoH")
    terms = [each.term for each in named(kernels, is_last_stage=True)]
    assert terms == [
        *("norms and elementwise", "weights", "attention", "weights", "weights", "norms and elementwise"),
        *("head", "head", "sampling", "all-reduce", "other", "sampling"),
    ]
    assert "head" not in [each.term for each in named(kernels, is_last_stage=False)]


def test_kernels_of_the_next_step_at_the_end_do_not_take_the_heads_place() -> None:
    kernels = step(GEMM, NORM, GEMM, ARGMAX, "vectorized_gather_kernel", NORM, GEMM)
    terms = [each.term for each in named(kernels, is_last_stage=True)]
    assert (terms[0], terms[2], terms[3]) == ("weights", "head", "sampling")
    assert terms.count("head") == 1


@pytest.mark.parametrize("names", [[], ["a_kernel_of_tomorrow"], [NORM, ARGMAX]])
def test_a_step_in_which_no_product_is_known_by_name_has_no_head(names: list[str]) -> None:
    terms = {each.term for each in named([Kernel(name, 0.0, 1.0) for name in names], is_last_stage=True)}
    assert terms.isdisjoint({"head", "sampling"})


def test_messages_within_a_stage_are_its_all_reduces_whatever_they_consist_of() -> None:
    kernels = step("gloo:send", "gloo:all_gather", "gloo:recv")  # at 0, 1.5 and 3 ms
    assert [each.term for each in named(kernels, is_last_stage=False)] == ["all-reduce"] * 3
    terms = [each.term for each in named(kernels, is_last_stage=False, at_work=[(0.0, 2e-3)])]
    assert terms == ["all-reduce", "all-reduce", "hops"]
    assert [each.term for each in named(kernels, is_last_stage=False, at_work=[])] == ["hops"] * 3


def test_what_overlaps_counts_once_and_computing_first() -> None:
    # 0 to 4 the GEMM, 1 to 3 an all-reduce under it, 3 to 6 another that is half hidden, 8 to 9 a norm; to 10 nothing.
    kernels = [
        Kernel("gemm", 0, 4, "weights"),
        Kernel("nccl", 1, 3, "all-reduce"),
        Kernel("nccl", 3, 6, "all-reduce"),
        Kernel("norm", 8, 9, "norms and elementwise"),
    ]
    found = {each.term: each for each in times_of(kernels, 0, 10)}
    assert found["weights"].wall_s == 4
    assert (found["all-reduce"].wall_s, found["all-reduce"].busy_s, found["all-reduce"].calls) == (2, 5, 2)
    assert found["norms and elementwise"].wall_s == 1
    assert (found["gaps"].wall_s, found["gaps"].calls) == (3, 2)
    assert list(found) == list(TERMS)


def test_a_product_that_waits_under_our_own_all_reduce_does_not_hide_it() -> None:
    kernels = [Kernel("add_rms_norm_kernel", 0, 3, "all-reduce"), Kernel("_gemv_kernel", 1, 5, "weights")]
    found = {each.term: each.wall_s for each in times_of(kernels, 0, 5)}
    assert (found["all-reduce"], found["weights"]) == (3, 2)


def test_a_kernel_counts_as_far_as_it_is_in_the_step() -> None:
    found = {each.term: each.wall_s for each in times_of([Kernel("gemm", -5, 3, "weights")], 1, 4)}
    assert (found["weights"], found["gaps"]) == (2, 1)
    with pytest.raises(ValueError, match="must end after it begins"):
        times_of([], 2, 1)


def test_terms_of_any_step_add_up_to_it() -> None:
    draw = random.Random(7)
    terms = [term for term in TERMS if term != "gaps"]
    for _ in range(200):
        kernels = []
        for _ in range(draw.randrange(30)):
            start = draw.uniform(-1, 11)
            kernels.append(Kernel("k", start, start + draw.expovariate(1), draw.choice(terms)))
        times = times_of(kernels, 0, 10)
        assert sum(each.wall_s for each in times) == pytest.approx(10)
        assert all(each.wall_s >= -1e-12 for each in times)
        covered = sum(any(k.start_s <= at / 100 < k.end_s for k in kernels) for at in range(1000)) / 100
        gaps = next(each for each in times if each.term == "gaps")
        assert gaps.wall_s == pytest.approx(10 - covered, abs=0.4)  # by looking every hundredth of a second
