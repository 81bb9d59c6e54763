"""The site of the documents (`make docs`): the files as they are, the README first."""

from sphinx.application import Sphinx

project = "Goreprox"
copyright = "Goreprox contributors"  # noqa: A001  Sphinx's name for it
extensions = ["myst_parser"]
# The source directory is the repository, so links between files are the same here and there.
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "deploy/*.md"]
myst_heading_anchors = 4
nitpicky = True
html_theme = "furo"
html_title = "Goreprox"
html_copy_source = False
html_show_sphinx = False

CONTENTS = """
```{toctree}
:hidden:
:caption: Use

docs/first-connection
docs/recipes
docs/publish
docs/troubleshooting
docs/configuration
docs/http
docs/inspector
docs/proxy-protocol
docs/reverse-proxy
docs/security
```

```{toctree}
:hidden:
:caption: Operate

docs/operations
docs/scale
docs/nats
docs/deploy
docs/status
docs/dashboard
docs/metrics
docs/reliability
docs/benchmarks
```

```{toctree}
:hidden:
:caption: Develop

CONTRIBUTING
docs/architecture
docs/protocol
docs/upgrade
deploy/publish
CHANGELOG
SECURITY
```
"""


def add_contents(_app: Sphinx, name: str, source: list[str]) -> None:
    """Give the site its contents, which would be noise in the README itself."""
    if name == root_doc:
        source[0] += CONTENTS


def setup(app: Sphinx) -> None:
    """Connect `add_contents`."""
    app.connect("source-read", add_contents)
