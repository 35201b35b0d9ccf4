"""Large matrices lie in huge pages where the kernel has them, and hold what other matrices hold."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from lrlora.ops import huge_pages

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HAS_THEM = PAGES.is_file() and "[never]" not in PAGES.read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux" or not HAS_THEM, reason="this kernel has no transparent huge pages")
def test_writing_to_a_large_matrix_stops_for_few_pages():
    # 64 MiB: malloc takes it from the kernel
    matrix = huge_pages.empty(4096, 4096, torch.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    matrix.fill_(1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 5, 3001])
def test_a_product_is_that_of_torch(rows, dtype):
    left, right = torch.randn(7, rows).to(dtype), torch.randn(7, 2000).to(dtype)
    assert torch.equal(huge_pages.product(left.T, right), left.T @ right)
