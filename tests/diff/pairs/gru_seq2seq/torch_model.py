import torch
import torch.nn.functional as F
import weights
from torch import nn


class EncoderRNN(nn.Module):
    """Reads the sentence from its end, as in the first sequence to sequence networks."""

    def __init__(self, forwards):
        super().__init__()
        self.forwards = forwards
        self.embedding = nn.Embedding(weights.SOURCE_WORDS, weights.EMBED)
        self.gru = nn.GRU(weights.EMBED, weights.UNITS, batch_first=True)

    def forward(self, words):
        if not self.forwards:
            words = words.flip(1)
        return self.gru(self.embedding(words))


class LuongAttn(nn.Module):
    def __init__(self, transposed):
        super().__init__()
        self.general = nn.Linear(weights.UNITS, weights.UNITS, bias=False)
        self.transposed = transposed

    def forward(self, hidden, memory):
        if self.transposed:  # the matrix applied to the other of the two
            energy = torch.bmm(self.general(hidden), memory.transpose(1, 2))
        else:
            energy = torch.bmm(hidden, self.general(memory).transpose(1, 2))
        return F.softmax(energy, dim=-1)


class Cell(nn.Module):
    """The equations of a GRU by hand; parameters carry the names of nn.GRU."""

    def __init__(self, swapped):
        super().__init__()
        self.swapped = swapped
        width = 3 * weights.UNITS
        self.weight_ih_l0 = nn.Parameter(torch.zeros(width, weights.EMBED))
        self.weight_hh_l0 = nn.Parameter(torch.zeros(width, weights.UNITS))
        self.bias_ih_l0, self.bias_hh_l0 = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, xs, h):
        h, out = h[0], []
        for x in xs.unbind(1):
            xr, xz, xn = F.linear(x, self.weight_ih_l0, self.bias_ih_l0).chunk(3, 1)
            hr, hz, hn = F.linear(h, self.weight_hh_l0, self.bias_hh_l0).chunk(3, 1)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            n = torch.tanh(xn + r * hn)
            h = z * n + (1 - z) * h if self.swapped else (1 - z) * n + z * h
            out.append(h)
        return torch.stack(out, 1), h[None]


class DecoderRNN(nn.Module):
    def __init__(self, fault, variant):
        super().__init__()
        self.fault = fault
        self.embedding = nn.Embedding(weights.TARGET_WORDS, weights.EMBED)
        by_hand = variant == "cell_by_hand" or fault == "update_swapped"
        if by_hand:
            self.gru = Cell(fault == "update_swapped")
        else:
            self.gru = nn.GRU(weights.EMBED, weights.UNITS, batch_first=True)
        self.attn = LuongAttn(fault == "score_transposed")
        self.concat = nn.Linear(2 * weights.UNITS, weights.UNITS)
        self.out = nn.Linear(weights.UNITS, weights.TARGET_WORDS)

    def forward(self, words, hidden, memory):
        states, _ = self.gru(self.embedding(words), hidden)
        context = self.attn(states, memory) @ memory
        both = (states, context) if self.fault == "concat_swapped" else (context, states)
        return self.out(torch.tanh(self.concat(torch.cat(both, dim=2))))


class Seq2Seq(nn.Module):
    def __init__(self, fault, variant):
        super().__init__()
        self.fault, self.variant = fault, variant
        self.encoder = EncoderRNN(forwards=fault == "not_reversed")
        self.decoder = DecoderRNN(fault, variant)

    def forward(self, source, target):
        memory, hidden = self.encoder(source)
        if self.fault == "zero_state":
            hidden = torch.zeros_like(hidden)
        start = torch.full_like(target[:, :1], weights.START)
        fed = torch.cat([start, target[:, :-1]], dim=1)
        if self.variant == "step_by_step":
            steps = []
            states = hidden
            for t in range(fed.shape[1]):  # as it is written for sampling
                out, states = self.decoder.gru(self.decoder.embedding(fed[:, t : t + 1]), states)
                context = self.decoder.attn(out, memory) @ memory
                steps.append(self.decoder.out(torch.tanh(self.decoder.concat(torch.cat((context, out), dim=2)))))
            return torch.cat(steps, dim=1)
        return self.decoder(fed, hidden, memory)


def build(fault=None, variant=None, dtype="float32"):
    w = {k: torch.from_numpy(v) for k, v in weights.make().items()}
    model = Seq2Seq(fault, variant).to(getattr(torch, dtype))
    state = {
        "encoder.embedding.weight": w["source"],
        "decoder.embedding.weight": w["target"],
        "decoder.attn.general.weight": w["score"],
        "decoder.concat.weight": w["mix"],
        "decoder.concat.bias": w["mix.b"],
        "decoder.out.weight": w["words"],
        "decoder.out.bias": w["words.b"],
    }
    for side in ("encoder", "decoder"):
        state[f"{side}.gru.weight_ih_l0"], state[f"{side}.gru.weight_hh_l0"] = w[f"{side}.ih"], w[f"{side}.hh"]
        state[f"{side}.gru.bias_ih_l0"], state[f"{side}.gru.bias_hh_l0"] = w[f"{side}.bih"], w[f"{side}.bhh"]
    model.load_state_dict(state)
    model.eval()
    return model


def inputs(seed):
    return weights.sentences(seed)
