"""Music for a folder of videos: does the length fit, how long does it take, how much memory?

    python -m benchmarks.clips DIR [--long SECONDS]

Runs `cdcd generate` once per video in a process of its own and prints a Markdown table. With
`--long` the first video is repeated, without encoding it again, to about that many seconds and
measured too, which shows whether memory grows with the length.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path


def repeat(source: Path, seconds: float, target: Path) -> None:
    """Write the pictures of `source` again and again into `target` until it lasts `seconds`."""
    import av

    with av.open(str(target), "w") as out:
        stream, shift = None, 0
        while True:
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                if stream is None:
                    stream = out.add_stream_from_template(video)
                end, first = 0, None
                for packet in container.demux(video):
                    if packet.dts is None or packet.pts is None:
                        continue
                    first = packet.dts if first is None else first
                    end = max(end, packet.pts - first + (packet.duration or 1))
                    packet.pts += shift - first
                    packet.dts += shift - first
                    packet.stream = stream
                    out.mux(packet)
                shift += end
                if shift * video.time_base >= seconds:
                    return


def measure(video: Path, folder: Path) -> tuple[float, float, float, float]:
    """Seconds of video, seconds of output, seconds of work, peak memory in MiB."""
    from cdcd import media

    out = folder / f"{video.stem}-music.mp4"
    started = time.perf_counter()
    arguments = ["cdcd", "generate", "--video", str(video), "--out", str(out), "--no-progress"]
    pid = os.posix_spawnp(
        arguments[0], arguments, os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )  # fmt: skip
    _, status, usage = os.wait4(pid, 0)
    work = time.perf_counter() - started
    if status:
        raise SystemExit(f"{video.name}: cdcd generate failed with status {status}")
    lengths = [media.probe(path).duration_seconds for path in (video, out)]
    return lengths[0], lengths[1], work, usage.ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--long", type=float, metavar="SECONDS")
    options = parser.parse_args()
    videos = sorted(options.folder.glob("*.mp4"))
    if not videos:
        raise SystemExit(f"{options.folder} must hold .mp4 files: got none")
    write = sys.stdout.write
    write(
        "| video | seconds | output - video | work per second | peak MiB |\n|---|---|---|---|---|\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.long:
            videos.append(folder / f"repeated-{options.long:.0f}s-in.mp4")
            repeat(videos[0], options.long, videos[-1])
        for video in videos:
            length, made, work, peak = measure(video, folder)
            write(
                f"| {video.name} | {length:.2f} | {made - length:+.4f} | {work / length:.2f} | "
                f"{peak:.0f} |\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
