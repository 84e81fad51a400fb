"""Log-probs of tokens from rows of logits, and their weighted gradient, as a PyTorch user would write them.

Forward: log_softmax(logits)[token]. Gradient: backward of the weighted sum to the logits. Prints one JSON line per shape
and pass: the median seconds after two unmeasured rounds, and bytes per second over the fewest bytes that must move
(forward: the logits read once; gradient: read and written once).

    python3 logits_torch.py --device cpu --shapes 1024x32000 4096x512 --dtype float32 [--compile]
"""

import argparse
import json
import statistics
import time

import torch

WARM_UP = 2


def log_prob(logits, tokens):
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens[:, None])[:, 0]


def lean_log_prob(logits, tokens):
    """Gather first, and subtract the log-sum: no [rows, vocab] result."""
    return logits.gather(-1, tokens[:, None])[:, 0].float() - torch.logsumexp(logits.float(), dim=-1)


def seconds_of(device, work):
    """Once; on a GPU between events, so that neither launching nor waiting counts."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return started.elapsed_time(ended) / 1e3


def median_seconds(device, repeats, work):
    return statistics.median([seconds_of(device, work) for _ in range(WARM_UP + repeats)][WARM_UP:])


def measure(options, rows, vocab):
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(0)
    logits = torch.randn(rows, vocab, device=device).to(dtype)
    tokens = torch.randint(vocab, (rows,), device=device)
    weights = torch.randn(rows, device=device)
    for form in (log_prob, lean_log_prob):
        function = torch.compile(form) if options.compile else form

        def forward():
            with torch.no_grad():
                return function(logits, tokens)

        def gradient():
            leaf = logits.detach().requires_grad_(True)
            (weights * function(leaf, tokens)).sum().backward()
            return leaf.grad

        for name, work, passes in (("forward", forward, 1), ("gradient", gradient, 2)):
            seconds = median_seconds(device, options.repeats, work)
            yield form.__name__, name, seconds, passes * logits.numel() * logits.element_size() / seconds


def main():
    parser = argparse.ArgumentParser(description="log-probs and weighted gradients of logits in PyTorch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--shapes", nargs="+", default=["1024x32000", "65536x256"], help="ROWSxVOCAB")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    for shape in options.shapes:
        rows, vocab = map(int, shape.split("x"))
        for form, name, seconds, rate in measure(options, rows, vocab):
            print(json.dumps({
                "program": f"torch {torch.__version__}" + (" compiled" if options.compile else ""),
                "threads": torch.get_num_threads(), "device": options.device, "dtype": options.dtype,
                "rows": rows, "vocab": vocab, "form": form, "pass": name, "seconds": seconds, "bytes_per_s": rate,
            }), flush=True)


if __name__ == "__main__":
    main()
