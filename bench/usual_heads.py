"""What people write to train a head on features in memory: the peer that ``bench.heads`` measures against."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from heads import HeadConfig, Samples
from heads.training.samples import class_weights


def usual_loop(train: Samples, val: Samples, config: HeadConfig, *, loader: bool, device: str = "cpu") -> float:
    """Train one head for all its epochs; return its last val loss.

    Args:
        train: features [N, 1, D].
        val: the same.
        config: the head.
        loader: batches from a DataLoader that shuffles, or slices of a copy shuffled once an epoch.
        device: where the head is; the slices' features too, the DataLoader's travel batch by batch.
    """
    x, y = torch.from_numpy(train.features[:, 0]).float(), torch.from_numpy(train.labels)
    x_val, y_val = torch.from_numpy(val.features[:, 0]).float().to(device), torch.from_numpy(val.labels).to(device)
    dense = nn.Linear(x.shape[1], config.hidden)
    norm = nn.BatchNorm1d(config.hidden, eps=1e-3)
    head = nn.Sequential(dense, nn.ReLU(), norm, nn.Linear(config.hidden, train.classes)).to(device)
    optimiser = torch.optim.Adam(head.parameters(), lr=config.lr, eps=1e-7)
    weight = torch.tensor(class_weights(train.labels, train.classes, config.class_weights), device=device)
    batches = DataLoader(TensorDataset(x, y), batch_size=config.batch_size, shuffle=True)
    if not loader:
        x, y = x.to(device), y.to(device)
    loss = torch.zeros(())
    for _ in range(config.epochs):
        head.train()
        for features, labels in batches if loader else _slices(x, y, config.batch_size):
            features, labels = features.to(device), labels.to(device)
            error = (cross_entropy(head(features), labels, reduction="none") * weight[labels]).mean()
            optimiser.zero_grad()
            objective = error + config.l2 * dense.weight.square().sum()
            objective.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
            optimiser.step()
        head.eval()
        with torch.no_grad():
            loss = cross_entropy(head(x_val), y_val)
    return float(loss)


def _slices(x: Tensor, y: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(x), device=x.device)
    x, y = x[order], y[order]
    for start in range(0, len(x), batch_size):
        yield x[start : start + batch_size], y[start : start + batch_size]
