"""The conformance kit: small checks that tell the author of a provider what is wrong with a component.

A component states itself once, through its `example`. Everything it must be joined to is brought by the kit and built from the
component's own spec, so that no other provider is needed. Two doors lead to the same runner: `stackwise check PROVIDER`, and in
the tests of a provider

```python
from stackwise import conformance

test_conforms = conformance.parametrize("waves")
```

Nothing here imports torch or pytest before a check runs.
"""

from stackwise.conformance.catalogue import CATALOGUE, Check
from stackwise.conformance.pytest_door import parametrize
from stackwise.conformance.runner import Outcome, Runner, expected_of
from stackwise.conformance.subject import Broken, NotApplicable, Source, Subject, subjects_of

__all__ = [
    "CATALOGUE",
    "Broken",
    "Check",
    "NotApplicable",
    "Outcome",
    "Runner",
    "Source",
    "Subject",
    "expected_of",
    "parametrize",
    "subjects_of",
]
