"""Time one simulated full chip stage by stage, and freeze or check the pixels of a preset."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from ks4diff.pipeline.simulate import distortions, simulate
from ks4diff.pipeline.simulate_config import simulate_config
from ks4diff.stages.sim import detector, night, scene, sky
from ks4diff.stages.sim.geometry import field_centre, patch_of, true_wcs

FROZEN = Path(__file__).parent / "frozen_skies.json"


def time_chip(size: tuple[int, int], density: float, seed: int) -> None:
    """Draw one chip and print seconds per part; nothing is written."""
    settings = {"size": list(size), "seed": seed, "exposures": 1, "sky": {"density_deg2": density}}
    config = simulate_config(None, None, settings)
    distortion = distortions(config)["K"]
    _, exposure = night.plan_exposures(config, 0)[0]
    patch = patch_of(config, "K")
    steps = {}
    begin = time.perf_counter()

    def done(name: str) -> None:
        nonlocal begin
        steps[name] = time.perf_counter() - begin
        begin = time.perf_counter()

    wcs = true_wcs(distortion, exposure.at, patch)
    catalog = sky.sky_around(config.sky, [seed, 0], field_centre(config.fields[0]), [(wcs, *size)], 0.06)
    done("catalogue")
    made = scene.draw_scene(config, exposure, patch, catalog, distortion)
    done("stars and galaxies")
    strips = detector.amplifiers(config, patch, tuple(k * size[0] // 8 for k in range(9)))
    key = [*exposure.key, ord("K")]
    exposed = detector.expose(config, made, key, strips)
    done("photons, particles, bleeding")
    read = detector.read_out(config, exposed, patch, key, strips)
    done("read-out")
    print(f"{size[0]}x{size[1]}, {len(made.sources)} sources, mean {read.counts.mean():.1f} counts")
    for name, seconds in steps.items():
        print(f"  {name:<30} {seconds:7.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  {'all':<30} {sum(steps.values()):7.1f} s, peak {peak:.2f} GB")


def frozen_sums(preset: str) -> dict[str, str]:
    """Return the checksums of a preset's pixels and truth, the resampled tiles left out.

    A tile's last float bits depend on the machine; its exposures' integers do not.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = simulate(simulate_config(preset, None, {}), Path(folder))
    return {name: value for name, value in sorted(made.checksums.items()) if "/kmt" in name}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_simulate", description=__doc__)
    parser.add_argument("--size", default="9216x9232")
    parser.add_argument(
        "--density", type=float, default=70_000.0, help="sources per square degree to 22.5 mag"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", metavar="PRESET", help="compare a preset with frozen_skies.json")
    parser.add_argument("--freeze", metavar="PRESET", help="record a new preset there")
    options = parser.parse_args()
    print(
        f"{platform.machine()} {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "galsim", "astropy"))
    )
    if not (options.check or options.freeze):
        width, height = (int(part) for part in options.size.split("x"))
        time_chip((width, height), options.density, options.seed)
        return
    known = json.loads(FROZEN.read_text()) if FROZEN.exists() else {}
    begin = time.perf_counter()
    preset = options.freeze or options.check
    sums = frozen_sums(preset)
    print(f"{preset}: {len(sums)} checksums in {time.perf_counter() - begin:.0f} s")
    if options.freeze:
        FROZEN.write_text(json.dumps({**known, preset: sums}, indent=1, sort_keys=True) + "\n")
    elif sums != known.get(preset):
        differ = [name for name in sums if sums[name] != known.get(preset, {}).get(name)]
        sys.exit(f"{preset} is not what was frozen: {', '.join(differ)}")


if __name__ == "__main__":
    main()
