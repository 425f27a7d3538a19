"""Pictures a second that the procedural generator makes.

    python benchmarks/procedural.py                         # two processes of one thread, 128 x 128
    python benchmarks/procedural.py --device cuda --batch 64 --processes 1

Each process makes its share of the scenes, after one batch that is not timed. A line a difficulty: scenes, pictures,
seconds, pictures a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time

import torch

from scenetx.data import ProceduralConfig, endless


def work(rank: int, arguments: argparse.Namespace, difficulty: float, barrier: object, out: object) -> None:
    torch.set_num_threads(1 if arguments.device == "cpu" else 4)
    config = ProceduralConfig(arguments.size, arguments.size, arguments.views, difficulty, smooth=arguments.smooth)
    stream = endless(config, arguments.batch, start=rank, stride=arguments.processes, device=arguments.device)
    next(stream)
    barrier.wait()
    start, done = time.perf_counter(), 0
    while done < arguments.scenes // arguments.processes:
        done += len(next(stream))
    if arguments.device != "cpu":
        torch.cuda.synchronize()
    out.put((done, time.perf_counter() - start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--smooth", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--difficulty", type=float, nargs="*", default=[0.0, 0.3, 0.6, 1.0])
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {arguments.device}")
    for difficulty in arguments.difficulty:
        barrier, out = context.Barrier(arguments.processes), context.Queue()
        jobs = [
            context.Process(target=work, args=(rank, arguments, difficulty, barrier, out))
            for rank in range(arguments.processes)
        ]
        for job in jobs:
            job.start()
        results = [out.get() for _ in jobs]
        for job in jobs:
            job.join()
        scenes, seconds = sum(done for done, _ in results), max(spent for _, spent in results)
        line = {"difficulty": difficulty, "scenes": scenes, "pictures": scenes * arguments.views}
        line |= {"seconds": round(seconds, 2), "pictures_per_second": round(scenes * arguments.views / seconds, 1)}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
