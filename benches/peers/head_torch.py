"""Log-probs, weighted gradients and the linear head against libraries of GPU kernels, beside the machine's own rates.

Measures the device's copy and read rate and its product of matrices first; then, where they can be imported, Liger
(liger-kernel), CCE (cut-cross-entropy) and QuACK (quack-kernels with nvidia-cutlass-dsl) beside eager and compiled
PyTorch. Prints one JSON line per operation and peer: the median seconds, and the floor that the rates set. A peer that
is missing or fails says so in its line.

    python3 head_torch.py --device cuda [--logits 8192x128256] [--linear 8192x4096x128256] [--dtype bfloat16]

No peer takes weights by sequence; where one takes weights by row, the rows of a sequence have the sequence's.
"""

import argparse
import importlib
import json

import torch
from logits_torch import lean_log_prob, median_seconds

REPEATS = 11


class Report:
    """Times each peer's work and prints its line."""

    def __init__(self, device, shape, dtype):
        self.device, self.about = device, {"device": str(device), "dtype": dtype, "shape": shape}

    def __call__(self, operation, peer, floor, work):
        line = {"operation": operation, "peer": peer, **self.about, "floor_seconds": floor}
        try:
            line["seconds"] = median_seconds(self.device, REPEATS, work)
        except Exception as error:  # the other peers go on
            line["error"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps(line), flush=True)


def optional(name):
    try:
        return importlib.import_module(name)
    except Exception as error:
        print(json.dumps({"peer": name, "error": f"{type(error).__name__}: {error}"[:200]}), flush=True)
        return None


def rates(device, dtype, size):
    """Bytes per second of a copy and of a read, operations per second of a product."""
    large = torch.randn(size * size // 2, device=device)
    other = torch.empty_like(large)
    product = [torch.randn(size // 4, size // 4, device=device).to(dtype) for _ in range(2)]
    found = {
        "copy": 2 * large.numel() * 4 / median_seconds(device, REPEATS, lambda: other.copy_(large)),
        "read": large.numel() * 4 / median_seconds(device, REPEATS, large.sum),
        "product": 2 * (size // 4) ** 3 / median_seconds(device, REPEATS, lambda: product[0] @ product[1]),
    }
    print(json.dumps({"peer": f"torch {torch.__version__}", "device": str(device), "rates": found}), flush=True)
    return found


def logits_peers(options, device, dtype, rate):
    rows, vocab = map(int, options.logits.split("x"))
    logits = torch.randn(rows, vocab, device=device).to(dtype)
    tokens, weights = torch.randint(vocab, (rows,), device=device), torch.randn(rows, device=device)
    size = logits.numel() * logits.element_size()
    read, rewrite = size / rate["read"], 2 * size / rate["copy"]
    report = Report(device, options.logits, options.dtype)

    def gradient(log_prob):
        def work():
            leaf = logits.detach().requires_grad_(True)
            (weights * log_prob(leaf)).sum().backward()
        return work

    compiled = torch.compile(lean_log_prob)
    for peer, function in (("torch eager", lean_log_prob), ("torch compiled", compiled)):
        report("log_prob", peer, read, lambda: function(logits, tokens))
        report("log_prob_gradient", peer, rewrite, gradient(lambda leaf: function(leaf, tokens)))
    if quack := optional("quack.cross_entropy"):
        report("log_prob", "quack", read, lambda: quack.cross_entropy_fwd(logits, tokens))
        report("log_prob_gradient", "quack", rewrite,
               gradient(lambda leaf: -quack.cross_entropy(leaf, tokens, reduction="none")))
        report("log_prob_gradient", "quack, one read, no weights", rewrite,
               lambda: quack.cross_entropy_fwd(logits, tokens, return_dx=True))
    if liger := optional("liger_kernel.transformers.functional"):
        report("log_prob_gradient", "liger", rewrite,
               gradient(lambda leaf: -liger.liger_cross_entropy(leaf, tokens, reduction="none")))


def linear_peers(options, device, dtype, rate):
    rows, width, vocab = map(int, options.linear.split("x"))
    hidden = (torch.randn(rows, width, device=device) * width ** -0.5).to(dtype)
    head = torch.randn(vocab, width, device=device).to(dtype)
    tokens, weights = torch.randint(vocab, (rows,), device=device), torch.randn(rows, device=device)
    product = 2 * rows * width * vocab / rate["product"]
    report = Report(device, options.linear, options.dtype)

    def gradient(loss):
        def work():
            leaves = hidden.detach().requires_grad_(True), head.detach().requires_grad_(True)
            loss(*leaves).backward()
        return work

    report("linear_log_prob", "torch, the product alone", product, lambda: hidden @ head.T)
    report("linear_gradient", "torch eager", 3 * product,
           gradient(lambda e, c: (weights * lean_log_prob(e @ c.T, tokens)).sum()))
    if cce := optional("cut_cross_entropy"):
        report("linear_log_prob", "cce", product,
               lambda: cce.linear_cross_entropy(hidden, head, tokens, reduction="none"))
        report("linear_gradient", "cce", 3 * product,
               gradient(lambda e, c: (weights * cce.linear_cross_entropy(e, c, tokens, reduction="none")).sum()))
    if liger := optional("liger_kernel.transformers.functional"):
        report("linear_gradient", "liger, no weights", 3 * product,
               gradient(lambda e, c: liger.liger_fused_linear_cross_entropy(e, c, tokens)))
    if quack := optional("quack.linear_cross_entropy"):
        report("linear_gradient", "quack, no weights", 3 * product,
               gradient(lambda e, c: quack.chunked_linear_cross_entropy(e, c, tokens)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the program at small shapes")
    parser.add_argument("--logits", default="8192x128256", help="rows x vocab")
    parser.add_argument("--linear", default="8192x4096x128256", help="rows x width x vocab")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"])
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    rate = rates(device, dtype, 32_768 if device.type == "cuda" else 2048)
    logits_peers(options, device, dtype, rate)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    linear_peers(options, device, dtype, rate)


if __name__ == "__main__":
    main()
