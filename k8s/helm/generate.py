"""Writes the chart's templates from the kustomize base, so that there is one source for both.

    python k8s/helm/generate.py            write k8s/helm/errata/templates and the defaults of `run` in values.yaml
    python k8s/helm/generate.py --check    exit 1 where they differ from what is there

The base is built with kubectl, every object becomes one template, and the few places that people set become
expressions over values.yaml. Rendered with its defaults the chart is the base: a test compares the two.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).resolve().parents[1]
CHART = Path(__file__).resolve().parent / "errata"
IMAGE = re.compile(r"^errata:")

OPTIONAL = {"monitoring": "components/monitoring", "tls": "components/tls"}
"""Components that only add objects: in the chart they are switched on by a value of that name."""

SECRETS = {"errata-tokens": "tokens", "errata-redis": "redis", "errata-ray": "ray"}

_BLOCK = re.compile(r"^( *)'?@@block ([a-z]+)@@'?: null$")
_HEAD = "{{- /* written by generate.py from the kustomize base; change that, or values.yaml */ -}}\n"

Object = dict[str, Any]


def build(directory: Path) -> list[Object]:
    """Objects of a kustomization."""
    kubectl = Path(sys.executable).parent / "kubectl"
    program = str(kubectl) if kubectl.is_file() else "kubectl"
    done = subprocess.run([program, "kustomize", str(directory)], capture_output=True, text=True, check=True)
    return [thing for thing in yaml.safe_load_all(done.stdout) if thing]


def templates() -> Iterator[tuple[str, str]]:
    """(file name, text) of every template, and of the helpers."""
    yield "_helpers.tpl", HELPERS
    objects = build(K8S / "base")
    yield from _written(objects, None)
    for name, directory in OPTIONAL.items():
        added: list[Object] = []
        for path in yaml.safe_load((K8S / directory / "kustomization.yaml").read_text())["resources"]:
            added += [thing for thing in yaml.safe_load_all((K8S / directory / path).read_text()) if thing]
        yield from _written(added, name)
    yield "dashboards.yaml", DASHBOARDS


def run_defaults() -> Object:
    """The configuration of the base, which is the default of ``run`` in values.yaml."""
    plain: Object = yaml.safe_load((K8S / "base" / "run.yaml").read_text())
    return plain


def _written(objects: list[Object], switch: str | None) -> Iterator[tuple[str, str]]:
    for thing in objects:
        if thing["kind"] == "Namespace":
            continue  # the release's; its pod security labels are said in docs/kubernetes.md
        name = thing["metadata"]["name"]
        text = _template(thing)
        if switch is not None:
            text = f"{{{{- if .Values.{switch}.enabled }}}}\n{text}{{{{- end }}}}\n"
        base = re.sub(r"-[a-z0-9]{10}$", "", name) if thing["kind"] == "ConfigMap" else name
        yield f"{thing['kind'].lower()}-{base}.yaml", _HEAD + text


def _template(thing: Object) -> str:
    """One object as a template: values that people set become expressions."""
    thing["metadata"]["namespace"] = "{{ .Release.Namespace }}"
    if thing["kind"] in ("PriorityClass",):
        thing["metadata"].pop("namespace")
    _walk(thing)
    kind = thing["kind"]
    if kind == "PersistentVolumeClaim":
        volume = thing["metadata"]["name"].removeprefix("errata-")
        thing["spec"]["resources"]["requests"]["storage"] = f"{{{{ .Values.storage.{volume}.size }}}}"
        thing["spec"]["accessModes"] = [f"{{{{ .Values.storage.{volume}.accessMode }}}}"]
        thing["spec"]["@@block storageclass@@"] = None
    if kind == "Ingress":
        thing["spec"]["tls"][0]["hosts"] = ["{{ .Values.tls.host }}"]
        thing["spec"]["rules"][0]["host"] = "{{ .Values.tls.host }}"
        thing["spec"]["ingressClassName"] = "{{ .Values.tls.ingressClassName }}"
        thing["metadata"]["annotations"]["cert-manager.io/cluster-issuer"] = "{{ .Values.tls.clusterIssuer }}"
    if kind == "ConfigMap" and "run.yaml" in thing.get("data", {}):
        thing["data"] = {"run.yaml": "@@run@@"}
    if kind == "Deployment" and thing["metadata"]["name"] == "errata-orchestrator":
        thing["spec"]["template"]["metadata"]["@@block runsum@@"] = None
        _set_resources(thing["spec"]["template"]["spec"]["containers"][0], "orchestrator.resources")
    if kind == "RayCluster":
        spec = thing["spec"]
        _set_resources(spec["headGroupSpec"]["template"]["spec"]["containers"][0], "ray.head.resources")
        for group in spec["workerGroupSpecs"]:
            values = f"ray.{group['groupName']}"
            _set_resources(group["template"]["spec"]["containers"][0], f"{values}.resources")
            for key in ("minReplicas", "maxReplicas", "replicas"):
                group[key] = f"@@int .Values.{values}.{key}@@"
    text = yaml.safe_dump(thing, sort_keys=False, width=10_000, allow_unicode=True)
    return "".join(_line(line) for line in text.splitlines())


def _set_resources(container: Object, values: str) -> None:
    container["resources"] = f"@@yaml .Values.{values}@@"


def _walk(node: Any) -> None:
    """Images, claims, secrets and what pods are given, wherever they stand."""
    if isinstance(node, list):
        for item in node:
            _walk(item)
        return
    if not isinstance(node, dict):
        return
    if isinstance(node.get("image"), str) and IMAGE.match(node["image"]):
        node["image"] = '{{ include "errata.image" . }}'
        node["imagePullPolicy"] = "{{ .Values.image.pullPolicy }}"
    if "containers" in node:  # a pod's specification
        for block in ("pullsecrets", "nodeselector", "tolerations"):
            node[f"@@block {block}@@"] = None
    for key in ("secretName",):
        if node.get(key) in SECRETS:
            node[key] = f"{{{{ .Values.secrets.{SECRETS[node[key]]} }}}}"
    for key in ("secretKeyRef", "credentials"):
        inner = node.get(key)
        if isinstance(inner, dict) and inner.get("name") in SECRETS:
            inner["name"] = f"{{{{ .Values.secrets.{SECRETS[inner['name']]} }}}}"
    inner = node.get("configMap")
    if isinstance(inner, dict) and "name" in inner:
        inner["name"] = re.sub(r"-[a-z0-9]{10}$", "", inner["name"])
    if node.get("kind") == "ConfigMap":
        node["metadata"]["name"] = re.sub(r"-[a-z0-9]{10}$", "", node["metadata"]["name"])
    for value in list(node.values()):
        _walk(value)


def _line(line: str) -> str:
    """One line of YAML with its markers turned into template text."""
    block = _BLOCK.match(line)
    if block:
        indent = block[1]
        return "".join(f"{indent}{part}\n" if not part.startswith("{{-") else f"{part}\n" for part in BLOCKS[block[2]])
    if "'@@run@@'" in line or "@@run@@" in line:
        indent = len(line) - len(line.lstrip())
        return f"{line.split(':')[0]}: |\n{{{{ toYaml .Values.run | indent {indent + 2} }}}}\n"
    whole = re.match(r"^( *)(- )?([A-Za-z]+): '?@@yaml (\.Values\.[A-Za-z.]+)@@'?$", line)
    if whole:
        depth = len(whole[1]) + len(whole[2] or "") + 2
        return f"{whole[1]}{whole[2] or ''}{whole[3]}:\n{{{{ toYaml {whole[4]} | indent {depth} }}}}\n"
    line = re.sub(r"'?@@int (\.Values\.[A-Za-z.]+)@@'?", r"{{ \1 }}", line)
    # YAML quotes an expression; within the quotes its own must not end them
    return re.sub(r"'(\{\{.*?\}\})'", lambda m: m[1] if '"' in m[1] else f'"{m[1]}"', line) + "\n"


BLOCKS: Mapping[str, tuple[str, ...]] = {
    "pullsecrets": (
        "{{- with .Values.image.pullSecrets }}",
        "imagePullSecrets:",
        "{{- range . }}",
        "  - name: {{ . }}",
        "{{- end }}",
        "{{- end }}",
    ),
    "nodeselector": (
        "{{- with .Values.nodeSelector }}",
        "nodeSelector: {{ toJson . }}",
        "{{- end }}",
    ),
    "tolerations": (
        "{{- with .Values.tolerations }}",
        "tolerations: {{ toJson . }}",
        "{{- end }}",
    ),
    "storageclass": (
        "{{- with .Values.storage.className }}",
        "storageClassName: {{ . }}",
        "{{- end }}",
    ),
    # a changed configuration makes a new pod, as kustomize's hashed names do
    "runsum": (
        "annotations:",
        "  checksum/run: {{ toYaml .Values.run | sha256sum }}",
    ),
}

HELPERS = """{{- /* written by generate.py */ -}}
{{- define "errata.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end -}}
"""

DASHBOARDS = (
    _HEAD
    + """{{- if .Values.monitoring.enabled }}
apiVersion: v1
kind: ConfigMap
metadata:
  name: errata-dashboards
  namespace: {{ .Release.Namespace }}
  labels:
    app.kubernetes.io/part-of: errata
    grafana_dashboard: "1"
data:
  errata.json: |
{{ .Files.Get "dashboards/errata.json" | indent 4 }}
{{- end }}
"""
)


def outdated() -> list[str]:
    """Files that are not what this script would write."""
    wanted = {CHART / "templates" / name: text for name, text in templates()}
    wanted[CHART / "dashboards" / "errata.json"] = _dashboard()
    wrong = [path.name for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    wrong += [path.name for path in (CHART / "templates").iterdir() if path not in wanted]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    if values["run"] != run_defaults():
        wrong.append("values.yaml: run")
    return wrong


def _dashboard() -> str:
    return (K8S / "components" / "monitoring" / "dashboards" / "errata.json").read_text()


def main() -> int:
    if "--check" in sys.argv[1:]:
        wrong = outdated()
        for name in wrong:
            print(f"{name} is not what k8s/helm/generate.py writes", file=sys.stderr)
        return 1 if wrong else 0
    folder = CHART / "templates"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, text in templates():
        (folder / name).write_text(text)
    (CHART / "dashboards").mkdir(exist_ok=True)
    (CHART / "dashboards" / "errata.json").write_text(_dashboard())
    head, mark, _ = (CHART / "values.yaml").read_text().partition("# The run's configuration")
    note = f"{mark}, as k8s/base/run.yaml has it (docs/configuration.md); written by generate.py.\n"
    run = yaml.safe_dump({"run": run_defaults()}, sort_keys=False, default_flow_style=None, width=110)
    (CHART / "values.yaml").write_text(head + note + run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
