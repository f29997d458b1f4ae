#!/usr/bin/env bash
# An author's first afternoon, for every kind given: new-provider, install, tests, check, and a finished run.
# Needs on the path: stackwise with its providers, and a python that has pip, setuptools, wheel and pytest.
set -euo pipefail
providers=() folders=()
for kind in "$@"; do
  stackwise new-provider "first-$kind" --kind "$kind"
  providers+=("first-$kind")
  folders+=("./stackwise-providers-first-$kind")
done
python -m pip install --quiet --no-index --no-build-isolation "${folders[@]/%/[test]}"
stackwise list-providers
python -m pytest -q "${folders[0]}"
stackwise check "${providers[@]}"
for folder in "${folders[@]}"; do
  (cd "$folder" && stackwise run example.yaml --output done)
done
