import numpy as np
import torch
import weights
from torch import nn


class Tagger(nn.Module):
    def __init__(self, variant, fault):
        super().__init__()
        self.embed = nn.Embedding(weights.WORDS, weights.EMB, padding_idx=0 if fault == "padding_idx" else None)
        self.rnn = nn.LSTM(weights.EMB, weights.HID, bidirectional=True, batch_first=variant != "time_first")
        self.tag = nn.Linear(2 * weights.HID, weights.TAGS)
        self.variant, self.fault = variant, fault

    def run(self, x, end):
        """One direction, written out with the LSTM's own weights."""
        wi, wh, bi, bh = (getattr(self.rnn, f"{n}_l0{end}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h = c = x.new_zeros(x.shape[0], weights.HID)
        out = []
        for t in range(x.shape[1]) if not end else range(x.shape[1] - 1, -1, -1):
            i, f, g, o = (x[:, t] @ wi.T + bi + h @ wh.T + bh).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return torch.stack(out[::-1] if end else out, 1)

    def forward(self, words):
        x = self.embed(words)
        if self.variant == "loop":
            y = torch.cat([self.run(x, ""), self.run(x, "_reverse")], -1)
        elif self.variant == "time_first":
            y = self.rnn(x.transpose(0, 1))[0].transpose(0, 1)
        else:
            y, _ = self.rnn(x)
        if self.fault == "directions_swapped":
            y = torch.cat(y.chunk(2, -1)[::-1], -1)
        if self.fault == "log_softmax":
            return torch.log_softmax(self.tag(y), -1)
        return self.tag(y)


def build(fault=None, variant=None, dtype="float32"):
    model = Tagger(variant, fault).to(getattr(torch, dtype))
    weights.load_torch(model, weights.make(), fault)
    return model.eval()


def inputs(seed):
    words = np.random.default_rng(seed).integers(0, weights.WORDS, (3, 7))
    words[:, -1] = 0
    return (words,)
