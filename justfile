# Each recipe is a stage of .ci/run; `just ci` runs all of them.

_default:
    @just --list

ci:
    .ci/run

format:
    .ci/run format

lint:
    .ci/run lint

features:
    .ci/run features

structure:
    .ci/run structure

idioms:
    .ci/run idioms

commits:
    .ci/run commits

tuner_for_gpus:
    .ci/run tuner_for_gpus

docs:
    .ci/run docs

report_scripts:
    .ci/run report_scripts

device_code:
    .ci/run device_code

tests:
    .ci/run tests

python_package:
    .ci/run python_package

main_job:
    .ci/run main_job

packages:
    .ci/run packages

race_mode:
    .ci/run race_mode

sanitizer:
    .ci/run sanitizer

embedded_kernels:
    .ci/run embedded_kernels
