"""Names, labels, ports, mounts and variables: that what refers to something finds it, and finds the right thing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from stepd_server.metrics.endpoint import PATH as METRICS_PATH

from .check import check, expect
from .manifests import COORDINATOR, SHARD, Manifests, Workload

# Variables that Kubernetes puts into the pods of an Indexed Job.
INDEXED_JOB = {"JOB_COMPLETION_INDEX"}
# What a server's health service calls "ready for others".
READY_SERVICES = {COORDINATOR: "stepd.v1.Coordinator", SHARD: "stepd.v1.Shard"}
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@check
def names_are_unique_dns_labels(m: Manifests) -> Iterator[str]:
    counts = Counter((document["kind"], document["metadata"]["name"]) for document in m.documents)
    for (kind, name), count in counts.items():
        if count > 1:
            yield f"{kind} {name} is there {count} times"
        if not DNS_LABEL.fullmatch(name):
            yield f"{kind} {name}: not a DNS label"


@check
def everything_says_what_it_is_part_of(m: Manifests) -> Iterator[str]:
    for document in m.documents:
        labels = document["metadata"].get("labels", {})
        yield from expect(f"{document['metadata']['name']}: part-of", labels.get("app.kubernetes.io/part-of"), "stepd")


@check
def workloads_select_their_pods(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        selector = w.spec["selector"]["matchLabels"]
        if [found.name for found in m.selected_by(selector)] != [w.name]:
            yield f"{w.name}: its selector takes {[found.name for found in m.selected_by(selector)]}"


@check
def services_select_one_statefulset(m: Manifests) -> Iterator[str]:
    for service in m.of("Service"):
        name, found = service["metadata"]["name"], m.selected_by(service["spec"]["selector"])
        if [w.name for w in found if w.kind == "StatefulSet"] != [name] or len(found) != 1:
            yield f"Service {name} selects {[w.name for w in found]}"


@check
def statefulsets_have_their_service(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        if w.spec.get("serviceName") not in m.names("Service"):
            yield f"{w.name}: serviceName {w.spec.get('serviceName')!r} is no Service"
        else:
            service = m.named("Service", w.spec["serviceName"])
            if not service["spec"]["selector"].items() <= w.labels.items():
                yield f"{w.name}: its Service does not select its pods, so they have no names"


@check
def services_are_headless_and_show_unready_pods(m: Manifests) -> Iterator[str]:
    for service in m.of("Service"):
        name, spec = service["metadata"]["name"], service["spec"]
        yield from expect(f"Service {name}: clusterIP", spec.get("clusterIP"), "None")
        yield from expect(f"Service {name}: unready too", spec.get("publishNotReadyAddresses"), True)
        yield from expect(f"Service {name}: type", spec.get("type", "ClusterIP"), "ClusterIP")


@check
def services_map_no_ports(m: Manifests) -> Iterator[str]:
    for service in m.of("Service"):
        for w in m.selected_by(service["spec"]["selector"]):
            for port in service["spec"]["ports"]:
                # A headless name leads to the pod itself: whatever the Service says, the container's port is dialled.
                found = w.container.ports.get(port.get("targetPort"))
                yield from expect(f"Service {service['metadata']['name']}: its port", port["port"], found)


@check
def port_numbers_are_ports(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        ports = [port["containerPort"] for port in w.container.document.get("ports", [])]
        names = [port.get("name") for port in w.container.document.get("ports", [])]
        if len(set(ports)) != len(ports) or len(set(names)) != len(names):
            yield f"{w.name}: ports {list(zip(names, ports, strict=True))} are not distinct"
        for port in ports:
            if not 1024 <= port <= 65535:
                yield f"{w.name}: {port} is not a port that a user without rights can listen on"


@check
def servers_listen_where_their_ports_say(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        for flag, port in (("--listen", "grpc"), ("--health", "health"), ("--metrics", "metrics")):
            yield from expect(f"{w.name}: port of {flag}", w.container.port_of(flag), w.container.ports.get(port))
            host = w.container.value_of(flag).rpartition(":")[0]
            if host not in {"0.0.0.0", "[::]"}:
                yield f"{w.name}: {flag} is on {host!r}, which other pods and the kubelet do not reach"


@check
def probes_ask_the_health_port(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            grpc = w.container.document.get(probe, {}).get("grpc")
            if grpc is None:
                yield f"{w.name}: no gRPC {probe}"
                continue
            yield from expect(f"{w.name}: port of {probe}", grpc.get("port"), w.container.ports.get("health"))
            # Killing a server because its peers are away would help nobody: only readiness asks for more than life.
            service = READY_SERVICES.get(w.name) if probe == "readinessProbe" else None
            yield from expect(f"{w.name}: service of {probe}", grpc.get("service"), service)


@check
def annotations_lead_to_the_metrics(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        wanted = {"scrape": "true", "port": str(w.container.ports.get("metrics")), "path": METRICS_PATH}
        for name, value in wanted.items():
            yield from expect(f"{w.name}: {name} of its metrics", w.annotations.get(f"prometheus.io/{name}"), value)


@check
def mounts_have_volumes(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        mounted = {mount["name"] for mount in w.container.mounts}
        claimed = {claim["metadata"]["name"] for claim in w.spec.get("volumeClaimTemplates", [])}
        if mounted != set(w.volumes) | claimed:
            yield f"{w.name}: mounts {sorted(mounted)}, volumes {sorted(set(w.volumes) | claimed)}"


@check
def mount_paths_are_distinct(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        for path, count in Counter(mount["mountPath"] for mount in w.container.mounts).items():
            if count > 1 or not path.startswith("/"):
                yield f"{w.name}: {count} volumes at {path}"


@check
def variables_in_arguments_exist(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        given = set(w.container.environment) | (INDEXED_JOB if w.spec.get("completionMode") == "Indexed" else set())
        texts = [*w.container.arguments, *(str(v.get("value", "")) for v in w.container.environment.values())]
        for name in {name for text in texts for name in re.findall(r"\$\((\w+)\)", text)}:
            if name not in given:
                yield f"{w.name}: $({name}) is not set and would be taken literally"
        for text in texts:
            if re.search(r"\$[{A-Za-z]", text):
                yield f"{w.name}: {text} looks like a shell's variable, and there is no shell"


@check
def environment_values_are_text(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        names = [variable["name"] for variable in w.container.document.get("env", [])]
        if len(names) != len(set(names)):
            yield f"{w.name}: a variable is set twice"
        for name, variable in w.container.environment.items():
            if not isinstance(variable.get("value", ""), str) or ("value" in variable) == ("valueFrom" in variable):
                yield f"{w.name}: {name} needs either a text or a source"


@check
def everybody_dials_the_coordinator(m: Manifests) -> Iterator[str]:
    expected = _address(m.coordinator)
    yield from expect("--coordinator of the shards", m.shard.container.value_of("--coordinator"), expected)
    target = m.workers.container.environment.get("STEPD_TARGET", {}).get("value")
    yield from expect("STEPD_TARGET of the workers", target, expected)


def _address(w: Workload) -> str:
    """Of its first pod."""
    return f"{w.name}-0.{w.spec.get('serviceName')}:{w.container.ports.get('grpc')}"


@check
def shards_advertise_their_own_name(m: Manifests) -> Iterator[str]:
    w = m.shard
    expected = f"$(POD_NAME).{w.spec.get('serviceName')}:{w.container.ports.get('grpc')}"
    yield from expect("--advertise", w.container.value_of("--advertise"), expected)
    source = w.container.environment.get("POD_NAME", {}).get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
    yield from expect("POD_NAME", source, "metadata.name")


@check
def shards_take_their_index_from_the_pod(m: Manifests) -> Iterator[str]:
    yield from expect("--index", m.shard.container.value_of("--index"), "hostname")
    yield from expect("first ordinal", m.shard.spec.get("ordinals", {}).get("start", 0), 0)
    if "hostname" in m.shard.pod:
        yield "the pod's host name is not that of the StatefulSet"


@check
def coordinator_expects_the_shards_there_are(m: Manifests) -> Iterator[str]:
    given = m.coordinator.container.environment.get("STEPD_SERVER_SHARDS", {}).get("value")
    yield from expect("STEPD_SERVER_SHARDS", given, str(m.shard.spec.get("replicas")))


@check
def workers_are_as_many_as_a_step_takes(m: Manifests) -> Iterator[str]:
    spec, container = m.workers.spec, m.workers.container
    yield from expect("parallelism", spec.get("parallelism"), spec.get("completions"))
    yield from expect("--workers", container.value_of("--workers"), str(spec.get("completions")))


@check
def workers_have_the_rank_of_their_index(m: Manifests) -> Iterator[str]:
    yield from expect("completionMode", m.workers.spec.get("completionMode"), "Indexed")
    yield from expect("--rank", m.workers.container.value_of("--rank"), "$(JOB_COMPLETION_INDEX)")


@check
def failure_policy_names_the_container(m: Manifests) -> Iterator[str]:
    for rule in m.workers.spec.get("podFailurePolicy", {}).get("rules", []):
        name = rule.get("onExitCodes", {}).get("containerName", m.workers.container.document["name"])
        yield from expect("container of podFailurePolicy", name, m.workers.container.document["name"])
    if "podFailurePolicy" in m.workers.spec:
        yield from expect("restartPolicy under a podFailurePolicy", m.workers.pod.get("restartPolicy"), "Never")
