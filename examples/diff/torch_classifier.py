"""The same classifier in PyTorch, with up to two mistakes that ports often have."""

from torch import nn
from torch.nn import functional as F


class Classifier(nn.Module):
    def __init__(self, flatten, padding):
        super().__init__()
        self.flatten, self.padding = flatten, padding
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1 if padding == "both" else 0)
        self.norm1 = nn.BatchNorm2d(16, eps=1e-3, momentum=0.01)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.dropout = nn.Dropout(0.2)
        self.dense1 = nn.Linear(6 * 5 * 32, 64)
        self.logits = nn.Linear(64, 5)

    def forward(self, images):
        x = images / 255
        if self.padding == "end":  # "same" of TensorFlow: stride 2 and an even size need one row and column at the end
            x = F.pad(x, (0, 1, 0, 1))
        x = self.norm1(F.relu(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = self.dropout(x)
        if self.flatten == "channels_last":  # the order of the weights of Dense
            x = x.permute(0, 2, 3, 1)
        x = x.flatten(1)
        return self.logits(F.relu(self.dense1(x)))


def build(flatten="channels_first", padding="both"):
    return Classifier(flatten, padding).eval()


# ruff: noqa: D101, D102, D103
