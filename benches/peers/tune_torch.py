"""The tuning of `motif`, as a PyTorch user would write it: the peer of a run of `benches/published/run.py`.

Reads r, lambda and the options from a finished run, and trains a fresh LSTM of r's shape by off-policy DPG: draws from r
guided by the motif's automaton (from a frozen copy of pi once pi is superior), draws of positive weight kept and each used
by as many updates, Adam on w / mean w with the crate's decay, and the crate's evaluations: KL(p||pi) from up to 4,096 kept
draws that nothing was trained on. Writes one line of JSON an evaluation, with the names of tuning.jsonl.

    python3 benches/peers/tune_torch.py RESULTS/5000-1/dpg-guided --base RESULTS/5000-1/base/base.safetensors
"""
import argparse
import json
import pathlib
import random
import struct
import time

import numpy as np
import torch
from torch import nn

BOS, EOS, PAD = 2, 3, 4
EVALUATIONS, ROWS, KEPT = 20, 512, 8 * 512


class Lstm(nn.Module):
    """Autoregressive over 0, 1, EOS; the space is that of the crate's examples: BOS 2, EOS 3, PAD 4."""

    def __init__(self, hidden, layers):
        super().__init__()
        self.embed = nn.Embedding(5, 5)
        self.embed.weight.data.copy_(torch.eye(5))
        self.embed.weight.requires_grad_(False)
        self.lstm = nn.LSTM(5, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, 5)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -torch.inf, 0.0, -torch.inf]))

    def log_probs(self, hidden):
        return torch.log_softmax(self.head(hidden) + self.mask, dim=-1)

    def score(self, x):
        """log pi(x) of each row of x [rows, longest]; what follows EOS does not count."""
        begin = torch.full_like(x[:, :1], BOS)
        hidden, _ = self.lstm(self.embed(torch.cat([begin, x[:, :-1]], dim=1)))
        chosen = self.log_probs(hidden).gather(-1, x.clamp(max=EOS)[..., None])[..., 0]
        return torch.where(x == PAD, 0.0, chosen).sum(dim=1)

    @torch.no_grad()
    def sample(self, rows, longest, guide=None):
        """Sequences [rows, longest], log q and log of the model itself, from one pass."""
        token, state, at = torch.full((rows, 1), BOS), None, torch.zeros(rows, dtype=torch.long)
        done = torch.zeros(rows, dtype=torch.bool)
        x = torch.full((rows, longest), PAD)
        log_q, log_model = torch.zeros(rows), torch.zeros(rows)
        for t in range(longest):
            hidden, state = self.lstm(self.embed(token), state)
            own = self.log_probs(hidden[:, 0])
            q = own if guide is None else torch.log_softmax(own + guide.boost(t, at), dim=-1)
            drawn = torch.multinomial(q.exp(), 1)
            for total, log_prob in ((log_q, q), (log_model, own)):
                total += torch.where(done, 0.0, log_prob.gather(1, drawn)[:, 0])
            x[:, t] = torch.where(done, PAD, drawn[:, 0])
            done |= drawn[:, 0] == EOS
            if guide is not None:
                at = guide.next[at, drawn[:, 0]]
            token = drawn
            if bool(done.all()):
                break
        return x, log_q, log_model


class Guide:
    """log h of each state of the motif's automaton: the chance under fair coins that the motif will still come."""

    def __init__(self, motif, longest):
        n = len(motif)
        self.next = torch.full((n + 1, 5), n)
        for state in range(n):
            self.next[state] = state
            for bit in (0, 1):
                text = motif[:state] + [bit]
                self.next[state, bit] = max(k for k in range(n + 1) if text[len(text) - k:] == motif[:k])
        met = torch.zeros(n + 1, dtype=torch.double)
        met[n] = 1.0
        # Strings have longest - 1 bits.
        h = [met] * 2
        for _ in range(longest - 1):
            h.insert(0, (h[0][self.next[:, 0]] + h[0][self.next[:, 1]]) / 2)
        self.log_h, self.log_end = torch.stack(h).log().float(), met.log().float()

    def boost(self, t, state):
        boost = torch.full((len(state), 5), -torch.inf)
        for bit in (0, 1):
            boost[:, bit] = self.log_h[t + 1, self.next[state, bit]]
        boost[:, EOS] = self.log_end[state]
        return boost


def load(path):
    """r from the crate's safetensors; its tables are [from, gate, to]."""
    data = pathlib.Path(path).read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    metadata = header.pop("__metadata__")
    shape, space = json.loads(metadata["shape"]), json.loads(metadata["space"])
    assert (space["bos"], space["eos"], space["pad"]) == (BOS, EOS, PAD)

    def tensor(name):
        start, stop = header[name]["data_offsets"]
        return torch.from_numpy(np.frombuffer(data[end + start:end + stop], "<f4").reshape(header[name]["shape"]).copy())

    model = Lstm(shape["hidden"], shape["layers"])
    gates = lambda t: t.reshape(t.shape[0], -1).T.contiguous()
    with torch.no_grad():
        for layer in range(shape["layers"]):
            getattr(model.lstm, f"weight_ih_l{layer}").copy_(gates(tensor(f"lstm.{layer}.input")))
            getattr(model.lstm, f"weight_hh_l{layer}").copy_(gates(tensor(f"lstm.{layer}.recurrent")))
            getattr(model.lstm, f"bias_hh_l{layer}").zero_()
            bias = getattr(model.lstm, f"bias_ih_l{layer}")
            bias.copy_(tensor(f"lstm.{layer}.bias").reshape(-1)) if f"lstm.{layer}.bias" in header else bias.zero_()
        model.head.weight.copy_(tensor("head.weight").T)
        model.head.bias.copy_(tensor("head.bias"))
    return model, shape, space["longest"]


def features(x, motif, flags):
    """The papers' seven flags: `flags` of features/flags.rs in the crate."""
    cut = lambda unit, length: [int(unit[i % len(unit)]) for i in range(length)]
    patterns = [motif, motif + [0], motif[: len(motif) // 2], None, cut("10101", len(motif)),
                cut("1001001", len(motif) + 2), cut("00110011", len(motif) // 2)]
    columns = []
    for flag, pattern in zip(flags, patterns):
        if flag == "0":
            continue
        if pattern is None:
            columns.append((x[:, 0] == 1).float())
        else:
            columns.append((x.unfold(1, len(pattern), 1) == torch.tensor(pattern)).all(-1).any(-1).float())
    return torch.stack(columns, dim=1)


class Potential:
    """log P(x) = log r(x) + <lambda, phi(x)>, -inf without the motif."""

    def __init__(self, report):
        self.motif, self.flags = [int(bit) for bit in report["motif"]], report["features"]
        self.coefficients = torch.tensor([0.0 if value is None else value for value in report["lambda"]])

    def __call__(self, x, log_base):
        phi = features(x, self.motif, self.flags)
        return torch.where(phi[:, 0] == 1.0, log_base + phi @ self.coefficients, -torch.inf)


class Pool:
    """Draws of positive weight; each comes up once before any comes up twice."""

    def __init__(self):
        self.x, self.log_w, self.left = [], [], []

    def keep(self, x, log_w):
        for row in torch.nonzero(log_w > -torch.inf)[:, 0].tolist():
            self.left.append(len(self.x))
            self.x.append(x[row])
            self.log_w.append(float(log_w[row]))

    def choose(self, count):
        random.shuffle(self.left)
        chosen, self.left = self.left[:count], self.left[count:]
        if len(chosen) < count:
            rest = list(set(range(len(self.x))) - set(chosen))
            random.shuffle(rest)
            cut = min(count - len(chosen), len(rest))
            chosen, self.left = chosen + rest[:cut], rest[cut:]
        scale = torch.tensor(self.log_w, dtype=torch.double)
        scale = torch.logsumexp(scale, 0) - torch.log(torch.tensor(float(len(scale))))
        weights = (torch.tensor([self.log_w[i] for i in chosen], dtype=torch.double) - scale).exp().float()
        return torch.stack([self.x[i] for i in chosen]), weights


class Trainer:
    def __init__(self, o, report):
        self.o, self.potential = o, Potential(report)
        self.base, shape, self.longest = load(o.base)
        self.policy, self.proposal = (Lstm(shape["hidden"], shape["layers"]) for _ in range(2))
        self.guide, self.swaps = Guide(self.potential.motif, self.longest), 0
        self.held = []

    def draw(self, rows):
        """x, log P and log q, from q."""
        if self.swaps:
            x, log_q, _ = self.proposal.sample(rows, self.longest)
            with torch.no_grad():
                log_base = self.base.score(x)
        else:
            x, log_q, log_base = self.base.sample(rows, self.longest, self.guide)
        return x, self.potential(x, log_base), log_q

    @torch.no_grad()
    def evaluate(self):
        """KL(p||pi), ESS/N; q <- pi where pi is superior by more than two standard errors."""
        self.held = (self.held + [self.draw(ROWS)])[-KEPT // ROWS:]
        x, log_p, log_q = (torch.cat(column) for column in zip(*self.held))
        own, _, _ = self.policy.sample(ROWS, self.longest)
        outside = 0.0 if self.swaps else float((features(own, self.potential.motif, "1000000") == 0).float().mean())
        log_w = (log_p - log_q).double()
        w = log_w.exp()
        log_v = log_w - torch.log(w.mean())
        v, log_u = log_v.exp(), (self.policy.score(x) - log_q).double()
        share = float(w.sum() ** 2 / (w ** 2).sum())
        inside = torch.where(v > 0, v * (log_v - log_u) - v + log_u.exp(), 0.0 if not self.swaps else log_u.exp())
        weighted = torch.where(v > 0, v * log_u, 0.0)
        delta = weighted.mean()
        error = torch.where(v > 0, v * (log_u - delta), 0.0).pow(2).sum().sqrt() / len(v)
        if share >= 100 and delta > 2 * error:
            self.proposal.load_state_dict(self.policy.state_dict())
            self.swaps, self.held = self.swaps + 1, []
        return (float(inside.mean()) + outside if share >= 100 else None), share / len(v)

    def run(self, emit):
        o, pool, started, cpu_started = self.o, Pool(), time.perf_counter(), time.process_time()
        adam = torch.optim.Adam([p for p in self.policy.parameters() if p.requires_grad], o.learning_rate)
        batches, updates = -(-o.samples // o.batch), 0
        for batch in range(batches):
            adam.param_groups[0]["lr"] = o.learning_rate * (1 - 0.95 * min(1.0, batch * o.batch / o.samples))
            x, log_p, log_q = self.draw(o.batch)
            pool.keep(x, log_p - log_q)
            for _ in range(o.updates if pool.x else 0):
                if (updates + 1) * o.batch > 20 * len(pool.x):
                    break
                x, weights = pool.choose(o.batch)
                adam.zero_grad(set_to_none=True)
                loss = -(weights * self.policy.score(x)).sum() / (len(x) * self.longest)
                loss.backward()
                nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
                adam.step()
                updates += 1
            if (batch + 1) * EVALUATIONS // batches > batch * EVALUATIONS // batches:
                kl, ess = self.evaluate()
                seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
                kl = None if kl is None else {"value": kl}
                emit({"seconds": seconds, "cpu_seconds": cpu, "samples": (batch + 1) * o.batch, "updates": updates, "kl": kl,
                      "ess": ess, "swaps": self.swaps})


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("run", type=pathlib.Path, help="a finished run of the crate, for lambda and the seed")
    a.add_argument("--base", required=True, help="its base.safetensors")
    a.add_argument("--samples", type=int, default=32_000)
    a.add_argument("--batch", type=int, default=64)
    a.add_argument("--updates", type=int, default=4)
    a.add_argument("--learning-rate", type=float, default=0.003)
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--out", type=pathlib.Path, help="file of the records; standard output otherwise")
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    report = json.loads((o.run / "report.json").read_text())
    random.seed(report["seed"])
    torch.manual_seed(report["seed"])
    out = open(o.out, "w") if o.out else None
    Trainer(o, report).run(lambda record: print(json.dumps(record), file=out, flush=True))


if __name__ == "__main__":
    main()
