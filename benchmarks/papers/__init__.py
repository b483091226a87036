"""The papers' comparison tables on the simulator: `python -m benchmarks.papers [--quick] [--out DIR] [--jobs N]`.

`workloads` (what is asked), `contenders` (who answers, and which settings of each are tried), `search` (the
highest load at an attainment), `trials` (one simulated seed), `study` (sweep, then measure), `journal` (what has
been run), `figures` (means, intervals, ratios), `targets` (the papers' claims), `tables` (Markdown, CSV).
"""
