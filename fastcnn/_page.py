"""HTML pages that need nothing else: no script, no reference to anything outside."""

from fastcnn._extras import need


def render(template: str, what: str, **values) -> str:
    """The page of a template of this package, such as 'demo/report.html.jinja', as text; `what` names it in errors."""
    jinja2 = need("jinja2", what, "demo")
    loader = jinja2.PackageLoader("fastcnn", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template).render(**values)
