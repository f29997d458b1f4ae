"""Tells letters, marks, numbers, punctuation and symbols apart by their Unicode names: an ordinary training script."""

import argparse
import unicodedata

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

ALPHABET = " -0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KINDS = "LMNPS"  # the first letter of a character's category
LONGEST = 40


def examples():
    """(name, kind) of every character that has a name of its own and is of one of the kinds."""
    for code in range(0x20000):
        name, kind = unicodedata.name(chr(code), ""), unicodedata.category(chr(code))[0]
        if name and kind in KINDS and not name.startswith(("CJK", "HANGUL", "TANGUT", "NUSHU", "KHITAN")):
            yield name, KINDS.index(kind)


def encode(name):
    """Letters as numbers from 1, and 0 behind the end."""
    letters = [1 + ALPHABET.index(letter) for letter in name[:LONGEST]]
    return letters + [0] * (LONGEST - len(letters))


class Names(Dataset):
    """Every tenth name is held out."""

    def __init__(self, training):
        self.rows = [row for i, row in enumerate(examples()) if (i % 10 == 0) != training]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        name, kind = self.rows[i]
        return torch.tensor(encode(name)), kind


class Block(nn.Module):
    """x + out(gelu(conv(norm(x))))."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, 5, padding=2)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        seen = self.conv(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.out(F.gelu(seen))


class Reader(nn.Module):
    """Reads the letters of a name and says its kind."""

    def __init__(self, width=48, blocks=2):
        super().__init__()
        self.letters = nn.Embedding(1 + len(ALPHABET), width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.kinds = nn.Linear(width, len(KINDS))

    def forward(self, letters):
        x = self.letters(letters)
        for block in self.blocks:
            x = block(x)
        return self.kinds(x.amax(1))


def loss_of(logits, kinds):
    return F.cross_entropy(logits, kinds, label_smoothing=0.05)


def rate(step, warmup=20):
    """Rises in a line, then falls with the root of the step."""
    return min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    step = 0
    while step < steps:
        for letters, kinds in DataLoader(Names(training=True), batch_size=64, shuffle=True):
            loss = loss_of(model(letters), kinds)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            if step % 50 == 0:
                print(f"step {step}: loss {loss.item():.3f}", flush=True)
            if step == steps:
                break
    right = total = 0
    with torch.no_grad():
        for letters, kinds in DataLoader(Names(training=False), batch_size=256):
            right, total = right + (model(letters).argmax(-1) == kinds).sum().item(), total + len(kinds)
    print(f"held out: {right / total:.3f} right")


if __name__ == "__main__":
    main()
