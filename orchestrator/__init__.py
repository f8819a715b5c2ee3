"""The control plane: it decides *when*; the other packages know *how*.

Rooms, top floor first. Each imports from floors below its own and from no other; a test holds them to it, and to this
list.

What people type:

* ``cli`` - the command line, one file for each group of commands.

The uses of a run:

* ``service`` - the HTTP API and its page, for as long as the process lives.
* ``doctor`` - checks of machine, cluster and configuration before a run.
* ``calibrate`` - from a model alone to a preset: facts, layers and settings found by measuring.
* ``experiments`` - grids of runs, and the tables and curves that compare them.

What a run does:

* ``run`` - opening and closing, the loop from stream to commit, batches, reverts.
* ``covariance`` - estimates of key covariances: obtained, stored, refreshed, compared.
* ``publish`` - committed versions for live servers, and samples taken from them.
* ``guard`` - fixed probes after every few commits; a breach pauses the run or reverts.
* ``history`` - the log, versions rebuilt and verified, exports, the search for the edit that broke something.
* ``sources`` - where requests come from: files, files that grow, Redis streams.
* ``measuring`` - evaluations of frozen versions, the timeline, retention, preserved abilities.

The ground:

* ``journal`` - what was asked, committed and measured, in SQLite, and the files that it names.
* ``config`` - settings as models, read from files, presets and flags.
* ``tracking`` - MLflow, fed from a spool that survives its absence.
* ``report`` - summaries, pages and pictures.
* ``progress`` - the lines and bars that a waiting person sees.
"""
