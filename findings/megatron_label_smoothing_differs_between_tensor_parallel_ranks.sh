#!/usr/bin/env bash
# megatron-core 0.19.2 (torch 2.15.0): vocab_parallel_cross_entropy with label_smoothing gives each tensor-parallel rank
# another loss.
#
# Expected: the loss over the whole vocabulary, the same number on all ranks, as without smoothing. Every rank passes it
# on to what is replicated over the ranks. With the code's own formula, -(1 - s) log p(target) - s mean(log p) where
# s = eps V/(V - 1), it is 2.1932 here.
# What happens: the mean of log p and the number of classes V are those of the rank's part of the logits.
#
# Seen:
#   whole vocabulary: 2.1932
#   label_smoothing 0.0: 2.1289 and 2.1289
#   label_smoothing 0.2: 2.2622 and 2.1455
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
install() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
install torch==2.15.0 numpy packaging
# It says that it needs Python 3.12; what runs here does not.
install --no-deps --ignore-requires-python megatron-core==0.19.2
cat > "$folder/script.py" <<'PYTHON'
import sys
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LOGITS = torch.tensor([[[1.0, 2.0, 0.0, -1.0, 0.5, 3.0, 1.5, 2.5]]]) * torch.tensor([1.0] * 4 + [0.5] * 4)


def run(rank, store):
    warnings.simplefilter("ignore")
    from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    for smoothing in (0.0, 0.2):
        own = LOGITS.chunk(2, -1)[rank].clone()  # [S, B, V / 2]
        loss = vocab_parallel_cross_entropy(own, torch.tensor([[0]]), smoothing, dist.group.WORLD)
        both = [torch.empty_like(loss) for _ in range(2)]
        dist.all_gather(both, loss)
        if rank == 0:
            print(f"label_smoothing {smoothing}:", " and ".join(f"{each.item():.4f}" for each in both), flush=True)


if __name__ == "__main__":
    log_p = LOGITS[0, 0].log_softmax(0)
    eps = 0.2 * 8 / 7
    print(f"whole vocabulary: {-(1 - eps) * log_p[0] - eps * log_p.mean():.4f}", flush=True)
    mp.spawn(run, (sys.argv[1],), nprocs=2)
PYTHON
found=$("$folder/env/bin/python" "$folder/script.py" "$folder/store" 2>/dev/null)
echo "$found"
[ "$found" = "whole vocabulary: 2.1932
label_smoothing 0.0: 2.1289 and 2.1289
label_smoothing 0.2: 2.2622 and 2.1455" ]
