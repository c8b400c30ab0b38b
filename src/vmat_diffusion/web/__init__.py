"""The review room: a local web server on which plans are made, looked at, decided on and signed for.

Everything that is kept lies in one folder: `room.sqlite`, `cases/` and `runs/`. See `docs/review_room.md`.
"""
