"""One off-policy DPG step of `ebm-dpg`, as a PyTorch user would write it: the peer of `cargo bench --bench step`.

Draw x ~ q (an LSTM) with log q from the same pass, score x under r, evaluate pattern features phi, weight by
w = P(x)/q(x) with P = r exp<lambda, phi>, then ascend sum_b w_b log pi(x_b) with Adam. Prints one JSON line: the median
seconds of each phase over the repeats, after two unmeasured steps.

    python3 dpg_torch.py --batch 2048 --hidden 200 --layers 2 --length 30 --vocab 4 --repeats 7

On a GPU, `--graph` replays the whole step as one CUDA graph (only the total is measured then), and `--compile` compiles
the scoring of sequences.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn

PHASES = ("sample", "score", "features", "gradient")
WARM_UP = 2


class Lstm(nn.Module):
    """An autoregressive model; token `vocab - 1` begins a sequence."""

    def __init__(self, vocab, hidden, layers):
        super().__init__()
        self.bos = vocab - 1
        self.embed = nn.Embedding(vocab, hidden)
        self.lstm = nn.LSTM(hidden, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, vocab)

    def log_prob(self, x):
        """log pi(x) of each row of x [batch, length]."""
        begin = torch.full_like(x[:, :1], self.bos)
        hidden, _ = self.lstm(self.embed(torch.cat([begin, x[:, :-1]], dim=1)))
        log_probs = torch.log_softmax(self.head(hidden), dim=-1)
        return log_probs.gather(-1, x[..., None])[..., 0].sum(dim=1)

    @torch.no_grad()
    def sample(self, batch, length):
        """Sequences [batch, length] and their log-probs, from one pass."""
        token = torch.full((batch, 1), self.bos, device=self.head.weight.device)
        state, drawn, log_q = None, [], 0.0
        for _ in range(length):
            hidden, state = self.lstm(self.embed(token), state)
            log_probs = torch.log_softmax(self.head(hidden[:, -1]), dim=-1)
            token = torch.multinomial(log_probs.exp(), 1)
            log_q = log_q + log_probs.gather(-1, token)[:, 0]
            drawn.append(token)
        return torch.cat(drawn, dim=1), log_q


def patterns(count, vocab, device):
    """`count` patterns of five content tokens."""
    return [torch.tensor([(i + j) % (vocab - 1) for j in range(5)], device=device) for i in range(count)]


def contains(x, pattern):
    """1 where the pattern occurs in the row."""
    return (x.unfold(1, len(pattern), 1) == pattern).all(dim=-1).any(dim=-1).float()


def measure(options):
    device = torch.device(options.device)
    torch.manual_seed(0)
    proposal, base, policy = (Lstm(options.vocab, options.hidden, options.layers).to(device) for _ in range(3))
    features = patterns(options.features, options.vocab, device)
    coefficients = torch.ones(len(features), device=device)
    adam = torch.optim.Adam(policy.parameters(), lr=1e-3, capturable=options.graph)
    if options.compile:
        for model in (base, policy):
            model.log_prob = torch.compile(model.log_prob)

    def now():
        if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return time.perf_counter()

    def step():
        times = [now()]
        x, log_q = proposal.sample(options.batch, options.length)
        times.append(now())
        if options.sample_only:
            return [times[1] - times[0]]
        with torch.no_grad():
            log_base = base.log_prob(x)
        times.append(now())
        phi = torch.stack([contains(x, pattern) for pattern in features], dim=1)
        weight = (log_base + phi @ coefficients - log_q).exp()
        weight = weight / weight.mean()
        times.append(now())
        adam.zero_grad(set_to_none=True)
        (-(weight * policy.log_prob(x)).mean()).backward()
        adam.step()
        times.append(now())
        return [after - before for before, after in zip(times, times[1:])]

    if options.graph:
        return {"total": statistics.median(replayed(step, options.repeats))}
    steps = [step() for _ in range(WARM_UP + options.repeats)][WARM_UP:]
    seconds = {phase: statistics.median(column) for phase, column in zip(PHASES, zip(*steps))}
    seconds["total"] = statistics.median(sum(times) for times in steps)
    return seconds


def replayed(step, repeats):
    """Seconds of each replay of the step as one CUDA graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def once():
        torch.cuda.synchronize()
        started = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    return [once() for _ in range(WARM_UP + repeats)][WARM_UP:]


def main():
    parser = argparse.ArgumentParser(description="one off-policy DPG step in PyTorch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    for name, default in dict(batch=2048, hidden=200, layers=2, length=30, vocab=4, features=4, repeats=7).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--graph", action="store_true", help="replay the step as one CUDA graph")
    parser.add_argument("--sample-only", action="store_true", help="only draw sequences, with their log-probs")
    parser.add_argument("--compile", action="store_true", help="torch.compile the scoring")
    options = parser.parse_args()
    if options.graph and options.device == "cpu":
        parser.error("--graph: expected --device cuda, got cpu")
    seconds = measure(options)
    print(json.dumps({
        "program": f"torch {torch.__version__}",
        "threads": torch.get_num_threads(),
        **vars(options),
        "seconds": seconds,
        "sequences_per_s": options.batch / seconds["total"],
    }))


if __name__ == "__main__":
    main()
