# Each recipe is a stage of .ci/run. `just ci` runs all of them.

_default:
    @just --list

ci *stages:
    .ci/run {{ stages }}
