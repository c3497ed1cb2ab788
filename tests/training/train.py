"""Trains the small model that comes with tplab, ``tplab/models/austen/``, on the text that ``novels.py`` writes.

    python -m tests.training.train novels.txt tplab/models/austen

The last twentieth of every 200 paragraphs is kept back and never trained on; the loss there is printed in bits per
byte of text. A GPU takes a minute or two, a CPU core hours. The tokenizer is learned first, unless the folder has one
(needs the package ``tokenizers``, which comes with transformers).
"""

import argparse
import lzma
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from tplab.layers.plain import MLP, Attention, Block
from tplab.models import ModelConfig, save_checkpoint
from tplab.models.rotary import make_rotary
from tplab.models.tokenizer import FILE, PARAGRAPH, PATTERN, Tokenizer

CONFIG = ModelConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=288,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_positions=256,
    norm_eps=1e-5,
    tied_embeddings=True,
    stop_tokens=(0,),
    dtype="bfloat16",
)
"""1.4 million parameters: 2.8 MB, cut by up to four ranks over TP, PP or both."""


class Writer(nn.Module):
    """The whole model, with the parameter names of Hugging Face's Llama (less ``model.``) and dropout."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        rope = make_rotary(config)
        heads = (config.hidden_size, config.num_heads, config.num_kv_heads)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(Attention(*heads, rope=rope), MLP(config.hidden_size, config.intermediate_size), norm_eps=1e-5)
            for _ in range(config.num_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.dropout = dropout
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                into = name.endswith(("o_proj.weight", "down_proj.weight"))  # adds to the residual stream
                nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * config.num_layers) if into else 1))

    def losses(self, ids_BS: torch.Tensor) -> torch.Tensor:
        """(B, S - 1): of each token but the first, in nats, given those before it."""
        x = F.dropout(self.embed_tokens(ids_BS[:, :-1]), self.dropout, self.training)
        for layer in self.layers:
            x = x + F.dropout(layer(x) - x, self.dropout, self.training)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.float().transpose(1, 2), ids_BS[:, 1:], reduction="none")


def split(text: str) -> tuple[str, str]:
    """What is trained on, and what is kept back: ten paragraphs of every 200."""
    paragraphs = text.splitlines(keepends=True)
    kept = [number % 200 >= 190 for number in range(len(paragraphs))]
    seen, unseen = (
        [each for each, back in zip(paragraphs, kept, strict=True) if back is want] for want in (False, True)
    )
    return "".join(seen), "".join(unseen)


def learn_tokenizer(text: str, folder: Path) -> None:
    """Write ``tokenizer.json``, and what transformers wants beside it."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Learned

    learned = Learned(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    learned.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=CONFIG.vocab_size, special_tokens=[PARAGRAPH], show_progress=False)
    learned.train_from_iterator(text.split(PARAGRAPH), trainer)
    learned.post_processor = processors.TemplateProcessing(single=f"{PARAGRAPH} $A", special_tokens=[(PARAGRAPH, 0)])
    folder.mkdir(parents=True, exist_ok=True)
    learned.save(str(folder / FILE), pretty=False)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "\\n", "eos_token": "\\n"}\n'
    )


def ids_of(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    """The tokens of a text of many paragraphs, one mark between two."""
    return torch.tensor([token for line in text.splitlines() for token in tokenizer.encode(line)] + [0])


def batches(ids: torch.Tensor, batch: int, length: int, seed: int) -> Iterator[torch.Tensor]:
    """Pieces (B, S + 1) of the text, from anywhere, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(ids) - length, (batch,), generator=generator).to(ids.device)
        yield ids[starts[:, None] + torch.arange(length + 1, device=ids.device)]


def train(
    model: Writer,
    ids: torch.Tensor,
    *,
    steps: int,
    batch: int = 64,
    length: int = 256,
    peak: float = 3e-3,
    decay: float = 0.1,
    seed: int = 0,
    every: int = 500,
) -> Iterator[tuple[int, float]]:
    """Steps of AdamW; every so many, how many steps there were and the loss of the last.

    Args:
        model: it is changed.
        ids: of the text.
        steps, batch, length: how many steps, pieces per step, tokens per piece.
        peak: learning rate after the first 200 steps, from which it falls to a hundredth as a cosine does.
        decay: weight decay of matrices.
        seed: of pieces and dropout.
        every: steps between two reports.
    """
    torch.manual_seed(seed)
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99), fused=ids.is_cuda)
    warm_up = min(200, steps // 10 + 1)
    model.train()
    for step, pieces in zip(range(1, steps + 1), batches(ids, batch, length, seed), strict=False):
        share = (step - warm_up) / max(1, steps - warm_up)
        for group in optimizer.param_groups:
            group["lr"] = peak * (step / warm_up if step < warm_up else 0.01 + 0.495 * (1 + math.cos(math.pi * share)))
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
            loss = model.losses(pieces).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % every == 0 or step == steps:
            yield step, float(loss.detach())


@torch.no_grad()
def bits_per_byte(model: Writer, ids: torch.Tensor, num_bytes: int, length: int = 256) -> float:
    """Of a text of so many bytes, from the tokens that have at least ``length / 2`` before them."""
    was_training = model.training
    model.eval()
    half = length // 2
    pieces = ids.unfold(0, length + 1, half)
    nats = torch.cat([model.losses(part)[:, half:].flatten() for part in pieces.split(64)])
    model.train(was_training)
    return float(nats.double().mean()) / math.log(2) * len(ids) / num_bytes


def compressed_bits_per_byte(seen: str, unseen: str) -> float:
    """What xz, which has read ``seen`` before, takes for ``unseen``: the baseline."""
    before, both = (len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)) for text in (seen, seen + unseen))
    return 8 * (both - before) / len(unseen)


class Trained:
    """A source of tensors for ``save_checkpoint``."""

    def __init__(self, model: Writer) -> None:
        self._weights = model.state_dict()

    @contextmanager
    def open(self, name: str) -> Iterator[torch.Tensor]:
        yield self._weights[name.removeprefix("model.")].cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--peak", type=float, default=4e-3)
    parser.add_argument("--decay", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.perf_counter()
    seen, unseen = split(asked.text.read_text("ascii"))
    if not (asked.folder / FILE).exists():
        learn_tokenizer(seen, asked.folder)
    tokenizer = Tokenizer.of(asked.folder)
    assert tokenizer is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids, ids_unseen = (ids_of(tokenizer, text).to(device) for text in (seen, unseen))
    print(f"{len(seen):,} bytes in {len(ids):,} tokens; {len(unseen):,} bytes kept back, in {len(ids_unseen):,}")
    torch.manual_seed(asked.seed)
    model = Writer(CONFIG, asked.dropout).to(device)
    for step, loss in train(
        model, ids, steps=asked.steps, batch=asked.batch, peak=asked.peak, decay=asked.decay, seed=asked.seed
    ):
        kept_back = bits_per_byte(model, ids_unseen, len(unseen))
        print(
            f"{step} steps, {time.perf_counter() - began:.0f} s: loss {loss:.3f}, {kept_back:.4f} bits/byte", flush=True
        )
    model.bfloat16()
    print(f"rounded to bfloat16: {bits_per_byte(model, ids_unseen, len(unseen)):.4f} bits per byte")
    print(f"xz, with the rest as its dictionary: {compressed_bits_per_byte(seen, unseen):.4f} bits per byte")
    save_checkpoint(asked.folder, CONFIG, Trained(model))


if __name__ == "__main__":
    main()
