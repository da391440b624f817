"""Trains the retrieval model and writes it as GGUF, with the training curve as CSV.

    python train.py --compile

Texts begin short and grow: once the model answers at the present length, batches of twice the length join.
"""

import argparse
import csv
import ctypes
import multiprocessing
import random
import time

import torch
import torch.nn.functional as F

import lines
import model as models
import tasks
import vocabulary

LENGTHS = [128, 256, 512, 1024, 2048, 4096, 8192]
SEED = 20261124
GOOD = 0.9  # share of first answer tokens right at which texts of twice the length join


class Batches(torch.utils.data.IterableDataset):
    """Endless batches of about `n_tokens` tokens; `level` is the index of the greatest length in use."""

    def __init__(self, n_tokens, level, seed):
        self.n_tokens, self.level, self.seed = n_tokens, level, seed

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}/{info.id if info else 0}")
        while True:
            top = self.level.value
            yield self.batch(rng, top if rng.random() < 0.5 else rng.randint(0, top))

    def batch(self, rng, level):
        length = LENGTHS[level]
        tokens = torch.zeros(self.n_tokens // length, length, dtype=torch.int16)
        known = torch.zeros(tokens.shape, dtype=torch.bool)
        for row in range(len(tokens)):
            ids, answers = tasks.draw(rng, vocabulary.encode, length)
            tokens[row, :len(ids)] = torch.tensor(ids, dtype=torch.int16)
            known[row, :len(ids)] = torch.tensor(answers)
        return level, tokens, known


def losses(model, tokens, known, other_weight):
    """The loss, and the share of answers whose first token is predicted: the one that needs the question."""
    tokens, known = tokens.long(), known[:, 1:]
    target = tokens[:, 1:]
    logits = model(tokens)[:, :-1].float()
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    other = (target != 0) & ~known
    first = known & ~F.pad(known, (1, 0))[:, :-1]

    def mean(values, where):
        return (values * where).sum() / where.sum()

    return mean(each, known) + other_weight * mean(each, other), mean(logits.argmax(-1) == target, first)


def rate(share, step, peak):
    """Learning rate: 300 steps of warm-up, level until 55 % of the time, then straight down to nothing."""
    return peak * min(1, (step + 1) / 300) * min(1, max(0, 1 - share) / 0.45)


@torch.no_grad()
def accuracy(model, n_lines, count, device, autocast, seed="held-out"):
    """Share of `count` questions whose whole number has the greatest logits at each digit."""
    right = 0
    for prompt, number in lines.samples(seed, n_lines, count):
        ids = vocabulary.encode(prompt + number)
        with autocast():
            logits = model(torch.tensor([ids], device=device))
        told = logits[0, -1 - lines.N_DIGITS:-1].argmax(-1).tolist()
        right += told == ids[-lines.N_DIGITS:]
    return right / count


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6, help="training time")
    parser.add_argument("--out", default="retrieval-8m.gguf")
    parser.add_argument("--curve", default="curve.csv")
    parser.add_argument("--resume", help="GGUF file to go on from; the texts start at --level")
    parser.add_argument("--level", type=int, default=0, help="index of the first greatest length")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--tokens", type=int, default=65536, help="tokens in a batch")
    parser.add_argument("--rate", type=float, default=2e-3, help="greatest learning rate")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--compile", action="store_true", help="compile the layers: faster after half a minute")
    parser.add_argument("--workers", type=int, default=14, help="processes that make texts")
    parser.add_argument("--samples", type=int, default=200, help="questions for each number of lines at the end")
    return parser.parse_args()


def main():
    options = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")

    def autocast():
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    if options.resume:
        model = models.load(options.resume)
    else:
        model = models.Model(models.Shape(len(vocabulary.PIECES), n_layers=options.layers, width=options.width,
                                          n_heads=options.width // 64, hidden=2 * options.width))
    model.to(device)
    n_weights = sum(weight.numel() for weight in model.parameters())
    print(f"{n_weights} weights on {device}", flush=True)
    if options.compile:
        model.compile()
    train(model, options, device, autocast)

    description = (f"Trained on line retrieval, hidden numbers and copying; {n_weights} weights, "
                   f"seed {options.seed}, eval/retrieval_model/train.py")
    models.save(model.float(), options.out, vocabulary.PIECES, description)
    plain = models.load(options.out).to(device).eval()
    for n_lines in (10, 50, 100, 200, 300, 400):
        share = accuracy(plain, n_lines, options.samples, device, autocast)
        print(f"{n_lines} lines: {share:.3f} of {options.samples}", flush=True)


def train(model, options, device, autocast):
    decayed = [weight for weight in model.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0}],
                                  betas=(0.9, 0.98), fused=device == "cuda")
    level = multiprocessing.Value(ctypes.c_int, options.level)
    loader = torch.utils.data.DataLoader(Batches(options.tokens, level, options.seed), batch_size=None,
                                         num_workers=options.workers, pin_memory=device == "cuda",
                                         prefetch_factor=4 if options.workers else None)
    curve = csv.writer(open(options.curve, "w", newline="", buffering=1))
    curve.writerow("seconds step length learning_rate loss first_answer_tokens_right".split())
    right = [0.0] * len(LENGTHS)  # running mean for each length
    begin = time.monotonic()
    shown = 0.0
    for step, (index, tokens, known) in enumerate(loader):
        seconds = time.monotonic() - begin
        share = seconds / (60 * options.minutes)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate(share, step, options.rate)
        with autocast():
            loss, now = losses(model, tokens.to(device, non_blocking=True), known.to(device, non_blocking=True), 0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        if step % 10 == 0:
            # Reading the numbers makes the processor wait for the device, so not at every step.
            right[index] += 0.2 * (now.item() - right[index])
            if index == level.value and right[index] > GOOD and level.value + 1 < len(LENGTHS):
                level.value += 1
            curve.writerow([f"{seconds:.1f}", step, LENGTHS[index], f"{rate(share, step, options.rate):.3g}",
                            f"{loss.item():.4f}", f"{now.item():.4f}"])
        if seconds - shown > 10:
            shown = seconds
            print(f"{seconds:.0f} s, step {step}, to {LENGTHS[level.value]}: loss {loss.item():.3f}, right "
                  + " ".join(f"{value:.2f}" for value in right), flush=True)


if __name__ == "__main__":
    main()
