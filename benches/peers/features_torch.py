"""Pattern features of a token batch, as a PyTorch user would write them: unfold and compare, pattern by pattern.

phi[b, f] = 1 where pattern f occurs in sequence b. Prints one JSON line: the median seconds and tokens per second over
all patterns, after two unmeasured rounds.

    python3 features_torch.py --device cpu --rows 100000 --length 128 --patterns 16
"""

import argparse
import json

import torch
from logits_torch import median_seconds


def contains(tokens, pattern):
    """1 where the pattern occurs in the row."""
    return (tokens.unfold(1, len(pattern), 1) == pattern).all(dim=-1).any(dim=-1)


def measure(options):
    device = torch.device(options.device)
    generator = torch.Generator(device).manual_seed(0)
    shape = (options.rows, options.length)
    tokens = torch.randint(options.vocab, shape, generator=generator, device=device, dtype=torch.int32)
    patterns = [torch.randint(options.vocab, (options.width,), generator=generator, device=device, dtype=torch.int32)
                for _ in range(options.patterns)]

    def phi():
        return torch.stack([contains(tokens, pattern) for pattern in patterns], dim=1).float()

    return median_seconds(device, options.repeats, phi)


def main():
    parser = argparse.ArgumentParser(description="pattern features in PyTorch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    for name, default in dict(rows=100_000, length=128, vocab=30, patterns=16, width=5, repeats=5).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    seconds = measure(options)
    print(json.dumps({
        "program": f"torch {torch.__version__}",
        "threads": torch.get_num_threads(),
        **vars(options),
        "seconds": seconds,
        "tokens_per_s": options.rows * options.length / seconds,
    }))


if __name__ == "__main__":
    main()
