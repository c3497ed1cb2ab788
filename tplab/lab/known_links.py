"""Links that panels and pictures offer, each as the latency and the bandwidth of one message."""

from collections.abc import Mapping

from tplab.collectives.cost import AlphaBeta

THIS_MACHINE = "this machine"
"""What a link is called that was fitted on the ranks of a notebook."""

# Bandwidth: ring all-reduce measured with nccl-tests on 6 H100 SXM (367) and 8 A100 SXM (235, stas00/ml-engineering);
# what NCCL 2.30's tuner takes for 16 lanes of PCIe 4 (24, behind one switch: through the host, four L40S measured 5);
# 46-48 per NDR port (nccl-tests issue 290). Latency: NCCL's time for an 8 KiB all-reduce over the 2(n-1) steps of a
# ring, by AIConfigurator's tables: H100 10.0 us on 4 and 16.0 on 8, A100 14 and 21, L40S 13 and 32; InfiniBand:
# a small send between two H100 hosts, 17-18 us (Vidur).
LINKS: Mapping[str, AlphaBeta] = {
    "NVLink 4 (H100)": AlphaBeta(alpha_us=1.5, beta_GBps=367),
    "NVLink 3 (A100)": AlphaBeta(alpha_us=2.0, beta_GBps=235),
    "PCIe 4 x16, one switch": AlphaBeta(alpha_us=2.2, beta_GBps=24),
    "InfiniBand NDR, 1 port": AlphaBeta(alpha_us=18.0, beta_GBps=47),
}
"""Latency of one message and bandwidth of one rank, for rings."""
