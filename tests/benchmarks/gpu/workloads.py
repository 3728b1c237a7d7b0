"""What the rows train: an MLP, a residual convolutional network and a GPT, each in the size of a card or of a try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import DataLoader

Batch = tuple[Tensor, Tensor]
CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """A model and its batches.

    Attributes
    ----------
    name : str
    counted : str
        What goes through it a second.
    model : callable
        Makes it.
    batch : callable
        Makes a batch from a generator.
    optimizer : callable
        Makes one from parameters.
    steps, warmup : int
        Of a block that is timed: so many steps, after so many that do not count.
    channels_last : bool
        Whether weights and images have the channels innermost.
    fused : bool
        Whether there are rows with a fused optimizer, too.
    seconds : int
        That its eager rows may take together, the first of them included; with compilation it is twice that.
    """

    name: str
    counted: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    optimizer: Callable[..., torch.optim.Optimizer]
    steps: int
    warmup: int
    channels_last: bool = False
    fused: bool = False
    seconds: int = 30

    def made(self, device: torch.device) -> nn.Module:
        """Return the model on the device, with the same weights every time."""
        torch.manual_seed(0)
        model = self.model().to(device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def loader(self, device: torch.device, distinct: int = 4) -> DataLoader[Batch]:
        """Return the loader of ready batches, which lie in pinned memory if there is a GPU to copy to.

        There is one more than is timed, so that the last one ends where another step begins.
        """
        generator = torch.Generator().manual_seed(1)
        pool = [self.batch(generator) for _ in range(distinct)]
        if device.type == "cuda":
            pool = [(x.pin_memory(), y.pin_memory()) for x, y in pool]
        batches = [pool[i % distinct] for i in range(self.warmup + self.steps + 1)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is dataset enough

    @property
    def size(self) -> int:
        """What one batch has of what is counted."""
        _, y = self.batch(torch.Generator().manual_seed(1))
        return y.numel()


def loss_of(model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """The loss of every row."""
    x, y = batch
    return cross_entropy(model(x).flatten(0, -2), y.flatten())


# ---------------------------------------------------------------------- the MLP


def make_mlp() -> nn.Module:
    """64-64-10: a step on a GPU is nothing but the host's work."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def vectors(generator: torch.Generator) -> Batch:
    """32 samples of 64 features."""
    return torch.randn(32, 64, generator=generator), torch.randint(CLASSES, (32,), generator=generator)


# ---------------------------------------------------------------------- the residual network


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        same = stride == 1 and width == out
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(width, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Add them up."""
        return (self.second(self.first(x)) + self.shortcut(x)).relu()


def make_residual(width: int, blocks: int) -> nn.Module:
    """Four stages, each twice as wide as the one before; 64 and 2 are a ResNet-18 for small images."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(4):
        out = width * 2**stage
        for block in range(blocks):
            layers.append(Residual(before, out, 2 if stage and not block else 1))
            before = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


def images(samples: int, side: int, generator: torch.Generator) -> Batch:
    """Images with their channels innermost."""
    x = torch.randn(samples, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


# ---------------------------------------------------------------------- the GPT


class Block(nn.Module):
    """Attention and an MLP, each beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Look back, then think."""
        parts = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(*parts.unbind(0), is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


class GPT(nn.Module):
    """A decoder with learned positions."""

    def __init__(self, words: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        nn.init.normal_(self.words.weight, std=0.02)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        """The scores of each next word."""
        return self.head(self.norm(self.blocks(self.words(x) + self.places[: x.size(1)])))  # type: ignore[no-any-return]


def texts(samples: int, length: int, words: int, generator: torch.Generator) -> Batch:
    """Random words, and the same ones a place further on."""
    whole = torch.randint(words, (samples, length + 1), generator=generator)
    return whole[:, :-1].contiguous(), whole[:, 1:].contiguous()


# ---------------------------------------------------------------------- sizes

SGD, AdamW = partial(torch.optim.SGD, lr=1e-2, momentum=0.9), partial(torch.optim.AdamW, lr=1e-4)
MLP, RESNET, SMALL_GPT = "tiny MLP", "residual network", "GPT"

CARD = (
    Workload(MLP, "samples", make_mlp, vectors, SGD, 500, 50, seconds=20),
    Workload(RESNET, "samples", partial(make_residual, 64, 2), partial(images, 256, 64), SGD, 30, 5, True, seconds=35),
    Workload(
        f"{SMALL_GPT}, 98 M",
        "tokens",
        partial(GPT, 16_384, 512, 768, 12, 12),
        partial(texts, 16, 512, 16_384),
        AdamW,
        20,
        4,
        fused=True,
        seconds=50,
    ),
)
TRY = (
    Workload(MLP, "samples", make_mlp, vectors, SGD, 20, 3),
    Workload(RESNET, "samples", partial(make_residual, 4, 1), partial(images, 4, 16), SGD, 4, 2, True),
    Workload(
        f"{SMALL_GPT}, small",
        "tokens",
        partial(GPT, 64, 16, 32, 2, 2),
        partial(texts, 2, 16, 64),
        AdamW,
        4,
        2,
        fused=True,
    ),
)
