"""A small character-level GPT that learns the text of Python's own help topics, in about a minute on a CPU.

    pip install 'zae-engine[plot]'
    python examples/char_lm.py                 # or: accelerate launch examples/char_lm.py
    python examples/char_lm.py --steps 100     # a shorter run, with a schedule to match

It prints the perplexity on text that it has not seen and a sample of what it writes, and draws the curves.
"""

import argparse
import math
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from zae_engine import Trainer

SEED = 0
CONTEXT, WIDTH, HEADS, DEPTH = 64, 128, 2, 2
BATCH, LEARNING_RATE = 16, 4e-3
STEPS_AN_EPOCH = 100
PICTURE = Path("char_lm.png")


class Block(nn.Module):
    """Attention, then a feed-forward net; each normalises its input and adds its output to it (pre-norm)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.project = nn.Linear(WIDTH, WIDTH, bias=False)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        # (batch, length, 3 * width) -> q, k and v, each of (batch, heads, length, width of a head)
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.feed(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=0.05)  # torch's std of 1 is far too much for an output layer

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.token.weight)  # tied: the embedding is the output layer, too


class CharTrainer(Trainer):
    def train_step(self, batch: list[Tensor]) -> dict[str, Tensor | int]:
        tokens, following = batch
        loss = F.cross_entropy(self.model(tokens).flatten(0, 1), following.flatten())
        return {"loss": loss, "num_items": following.numel()}  # the loss is a mean over tokens, not over windows

    test_step = train_step


def windows(text: Tensor, stride: int) -> TensorDataset:
    """Cut the text into windows that start every `stride` characters; each character's target is the next one."""
    cut = text.unfold(0, CONTEXT + 1, stride)  # one longer than the context, since its last character has a target, too
    return TensorDataset(cut[:, :-1], cut[:, 1:])


def make_loaders(train: Tensor, held_out: Tensor) -> tuple[DataLoader, DataLoader]:
    # A training window may start at any place. All of them would be 26,000 steps, so an epoch here is some of them,
    # drawn at random. The held-out text is read once, from its beginning to its end.
    data = windows(train, stride=1)
    some = RandomSampler(data, num_samples=STEPS_AN_EPOCH * BATCH)
    return DataLoader(data, BATCH, sampler=some), DataLoader(windows(held_out, stride=CONTEXT), 8 * BATCH)


def unigram_perplexity(train: Tensor, held_out: Tensor, vocabulary: int) -> float:
    """The perplexity of a model that knows nothing but how often each character occurs in the training text."""
    counts = torch.bincount(train, minlength=vocabulary) + 1.0  # add one, so that no character is impossible
    return math.exp(-(counts / counts.sum()).log()[held_out].mean().item())


def has_bf16() -> bool:
    # With instructions for it, a CPU trains this model a third faster in bf16; without them, 2 to 9 times slower.
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return any(cpu.get(name) for name in ("avx512_bf16", "amx_bf16"))


def make_trainer(vocabulary: int, steps: int) -> CharTrainer:
    torch.manual_seed(SEED)  # the first weights are drawn here, before there is a trainer with a seed
    model = GPT(vocabulary)
    optimizer = AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    warm_up = max(1, steps // 10)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + math.cos(math.pi * step / steps))

    return CharTrainer(
        model,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, rate),
        scheduler_step_on_batch=True,
        gradient_clip=1.0,
        mixed_precision="bf16" if has_bf16() else None,  # None, not "no": `accelerate launch` may choose
        seed=SEED,
    )


@torch.no_grad()
def generate(model: nn.Module, tokens: Tensor, length: int, temperature: float = 0.8) -> Tensor:
    """Append `length` characters to `tokens`, one at a time."""
    generator = torch.Generator().manual_seed(SEED)
    model.eval()
    for _ in range(length):
        logits = model(tokens[None, -CONTEXT:])[0, -1]
        # Drawn on the CPU, where the generator is.
        drawn = torch.multinomial((logits / temperature).softmax(-1).cpu(), 1, generator=generator)
        tokens = torch.cat([tokens, drawn.to(tokens.device)])
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a character-level GPT on Python's help topics.")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps (default: %(default)s)")
    steps: int = parser.parse_args().steps
    if steps < 1:
        parser.error("--steps must be at least 1")
    # On matrices this small a second thread gains little. With one, the figures do not depend on the number of cores,
    # and no thread waits for another whose core is busy with something else.
    torch.set_num_threads(1)

    text = "".join(topics[name] for name in sorted(topics))
    characters = sorted(set(text))
    number = {character: i for i, character in enumerate(characters)}
    tokens = torch.tensor([number[character] for character in text])
    train, held_out = tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]

    trainer = make_trainer(len(characters), steps)
    loader, valid_loader = make_loaders(train, held_out)
    trainer.run(loader=loader, valid_loader=valid_loader, max_steps=steps)
    trainer.apply_weights()  # the best ones, not the last
    trainer.history.plot(PICTURE)
    if not trainer.is_main_process:
        return
    best = trainer.history.best("test_loss")["test_loss"]
    start = torch.tensor([number[character] for character in "The "], device=trainer.device)
    sample = generate(trainer.model, start, length=300)

    print(f"unigram perplexity: {unigram_perplexity(train, held_out, len(characters)):.2f}")
    print(f"model's perplexity: {math.exp(best):.2f}")
    print(f"sample:\n{''.join(characters[i] for i in sample.tolist())}")
    print(f"curves: {PICTURE.resolve()}")


if __name__ == "__main__":
    main()
