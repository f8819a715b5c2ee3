"""Ways to break a manifest, each with the check that must see it; the checks themselves are what is tested here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.k8s.objects import Object, find

Change = Callable[[list[Object]], Any]
NAMED: dict[str, tuple[str, str, Change]] = {}
"""Name of the mutation -> (kustomization, check that sees it, what is done)."""


def mutation(check: str, of: str = "overlays/cluster") -> Callable[[Change], Change]:
    def keep(change: Change) -> Change:
        NAMED[change.__name__] = (of, check, change)
        return change

    return keep


def orchestrator(these: list[Object]) -> Object:
    return find(these, "Deployment", "errata-orchestrator")["spec"]


def container(these: list[Object]) -> Object:
    return orchestrator(these)["template"]["spec"]["containers"][0]


def ray(these: list[Object]) -> Object:
    return find(these, "RayCluster", "errata")["spec"]


def worker(these: list[Object], place: int = 0) -> Object:
    return ray(these)["workerGroupSpecs"][place]["template"]["spec"]


def policy(these: list[Object], name: str) -> Object:
    return find(these, "NetworkPolicy", name)["spec"]


def set_to(where: Object, key: str, value: Any) -> None:
    assert where.get(key) != value, "the mutation changes nothing"
    where[key] = value


@mutation("core kinds")
def a_typo_in_a_field(these):
    orchestrator(these)["replica"] = orchestrator(these).pop("replicas")


@mutation("core kinds")
def a_field_in_the_wrong_place(these):
    orchestrator(these)["securityContext"] = orchestrator(these)["template"]["spec"].pop("securityContext")


@mutation("core kinds")
def an_api_version_that_is_gone(these):
    set_to(find(these, "CronJob", "errata-verify"), "apiVersion", "batch/v1beta1")


@mutation("core kinds")
def a_number_that_should_be_text(these):
    container(these)["args"][-1] = 8080


@mutation("pod templates")
def a_typo_in_a_worker_of_ray(these):
    worker(these)["containers"][0]["resource"] = worker(these)["containers"][0].pop("resources")


@mutation("ray kinds")
def a_typo_in_a_group(these):
    ray(these)["workerGroupSpecs"][0]["minReplica"] = ray(these)["workerGroupSpecs"][0].pop("minReplicas")


@mutation("ray kinds")
def an_unknown_version_of_the_autoscaler(these):
    set_to(ray(these)["autoscalerOptions"], "version", "v3")


@mutation("images")
def an_image_dropped_by_a_patch(these):
    del worker(these)["containers"][0]["image"]


@mutation("images")
def a_tag_that_moves(these):
    set_to(container(these), "image", "errata:latest")


@mutation("images")
def two_images_in_one_cluster(these):
    set_to(worker(these, 1)["containers"][0], "image", "errata:0.0.9-cuda")


@mutation("resources")
def no_limit_on_memory(these):
    del container(these)["resources"]["limits"]["memory"]


@mutation("resources")
def a_request_above_its_limit(these):
    set_to(worker(these)["containers"][0]["resources"]["requests"], "cpu", "9")


@mutation("volumes")
def a_mount_without_its_volume(these):
    worker(these)["volumes"].pop()


@mutation("volumes")
def two_mounts_in_one_place(these):
    container(these)["volumeMounts"][0]["mountPath"] = container(these)["volumeMounts"][1]["mountPath"]


@mutation("pod security")
def a_container_that_runs_as_root(these):
    worker(these)["securityContext"].update(runAsNonRoot=False, runAsUser=0)


@mutation("pod security")
def a_container_that_may_escalate(these):
    del container(these)["securityContext"]["allowPrivilegeEscalation"]


@mutation("pod security")
def an_autoscaler_with_capabilities(these):
    del ray(these)["autoscalerOptions"]["securityContext"]["capabilities"]


@mutation("pod security")
def a_path_of_the_host(these):
    orchestrator(these)["template"]["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}})


@mutation("pod security")
def a_token_where_none_is_needed(these):
    set_to(worker(these), "automountServiceAccountToken", True)


@mutation("pod security")
def a_namespace_that_enforces_nothing(these):
    del find(these, "Namespace", "errata")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]


@mutation("secrets")
def a_password_in_the_environment(these):
    container(these)["env"].append({"name": "ERRATA_TOKENS", "value": "admin:hunter2"})


@mutation("secrets")
def a_secret_in_the_manifests(these):
    these.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "errata-redis", "namespace": "errata"}})


@mutation("probes")
def a_probe_on_a_container_of_ray(these):
    worker(these)["containers"][0]["livenessProbe"] = {"tcpSocket": {"port": 8080}}


@mutation("probes")
def an_orchestrator_that_is_never_ready(these):
    container(these)["readinessProbe"]["httpGet"]["port"] = "htpp"


@mutation("single writer")
def two_writers(these):
    set_to(orchestrator(these), "replicas", 2)


@mutation("single writer")
def a_rolling_update_of_the_writer(these):
    set_to(orchestrator(these), "strategy", {"type": "RollingUpdate"})


@mutation("single writer")
def the_journal_on_a_network_file_system(these):
    set_to(find(these, "PersistentVolumeClaim", "errata-state")["spec"], "accessModes", ["ReadWriteMany"])


@mutation("single writer")
def a_backup_on_another_node(these):
    del find(these, "CronJob", "errata-snapshot")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["affinity"]


@mutation("ray clusters")
def more_at_least_than_at_most(these):
    set_to(ray(these)["workerGroupSpecs"][0], "minReplicas", 99)


@mutation("ray clusters")
def two_groups_of_one_name(these):
    set_to(ray(these)["workerGroupSpecs"][1], "groupName", "cpu")


@mutation("ray clusters")
def work_on_the_head(these):
    set_to(ray(these)["headGroupSpec"]["rayStartParams"], "num-cpus", "4")


@mutation("ray clusters")
def workers_that_restart_under_the_autoscaler(these):
    set_to(worker(these), "restartPolicy", "Always")


@mutation("ray clusters")
def redis_named_twice(these):
    env = ray(these)["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    env.append({"name": "RAY_REDIS_ADDRESS", "value": "errata-redis:6379"})


@mutation("ray clusters")
def a_sidecar_before_ray(these):
    worker(these)["containers"].insert(0, {**copy.deepcopy(worker(these)["containers"][0]), "name": "sidecar"})


@mutation("versions")
def another_ray_than_in_the_image(these):
    set_to(ray(these), "rayVersion", "2.59.0")


@mutation("ray jobs", "jobs/sweep")
def a_job_whose_cluster_stays(these):
    set_to(find(these, "RayJob", "errata-sweep")["spec"], "shutdownAfterJobFinishes", False)


@mutation("ray jobs", "jobs/sweep-queued")
def a_queued_job_that_does_not_wait(these):
    set_to(find(these, "RayJob", "errata-sweep")["spec"], "suspend", False)


@mutation("ray clusters", "jobs/sweep")
def a_name_that_is_too_long(these):
    set_to(find(these, "RayJob", "errata-sweep")["metadata"], "name", "errata-" + "s" * 45)


@mutation("references")
def a_wrong_key_of_a_secret(these):
    ray(these)["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]["key"] = "passwd"


@mutation("references")
def a_configmap_without_its_hash(these):
    volumes = orchestrator(these)["template"]["spec"]["volumes"]
    volumes[0]["configMap"]["name"] = "errata-config"


@mutation("references")
def a_claim_that_nobody_made(these):
    worker(these)["volumes"][0]["persistentVolumeClaim"]["claimName"] = "errata-models"


@mutation("references")
def an_account_that_nobody_made(these):
    set_to(worker(these), "serviceAccountName", "errata-workers")


@mutation("services")
def a_service_that_leads_nowhere(these):
    find(these, "Service", "errata-mlflow")["spec"]["selector"]["app.kubernetes.io/name"] = "ml-flow"


@mutation("services")
def a_port_that_nobody_opens(these):
    find(these, "Service", "errata")["spec"]["ports"][0]["targetPort"] = "web"


@mutation("services")
def an_ingress_to_no_service(these):
    rule = find(these, "Ingress", "errata")["spec"]["rules"][0]
    rule["http"]["paths"][0]["backend"]["service"]["name"] = "errata-api"


@mutation("services")
def a_redis_that_is_elsewhere(these):
    set_to(ray(these)["gcsFaultToleranceOptions"], "redisAddress", "redis:6379")


@mutation("selectors")
def a_budget_for_nobody(these):
    find(these, "PodDisruptionBudget", "errata-editor")["spec"]["selector"]["matchLabels"]["errata.io/ray-of"] = "x"


@mutation("selectors")
def a_budget_in_percent_on_pods_of_ray(these):
    set_to(find(these, "PodDisruptionBudget", "errata-editor")["spec"], "minAvailable", "50%")


@mutation("selectors")
def a_selector_that_takes_others_too(these):
    orchestrator(these)["selector"]["matchLabels"] = {"app.kubernetes.io/name": "errata"}


@mutation("scope")
def an_object_in_another_namespace(these):
    set_to(find(these, "Service", "errata")["metadata"], "namespace", "default")


@mutation("rbac")
def a_role_for_everything(these):
    find(these, "Role", "errata-viewer")["rules"][0]["verbs"] = ["*"]


@mutation("policies")
def an_unscoped_policy(these):
    set_to(policy(these, "redis"), "podSelector", {})


@mutation("policies")
def a_policy_from_anywhere(these):
    del policy(these, "redis")["ingress"][0]["from"]


@mutation("policies")
def a_policy_for_a_port_that_nobody_opens(these):
    policy(these, "mlflow")["ingress"][0]["ports"][0]["port"] = 5001


@mutation("policies")
def a_policy_for_nobody(these):
    policy(these, "api")["podSelector"]["matchLabels"]["app.kubernetes.io/component"] = "api"


@mutation("flows")
def no_denial_at_the_bottom(these):
    these.remove(find(these, "NetworkPolicy", "deny-all"))
    policy(these, "dns")["policyTypes"] = ["Egress"]
    these.append({"kind": "NetworkPolicy", "metadata": {"name": "deny-all"}, "spec": {"podSelector": {}}})


@mutation("flows")
def an_orchestrator_that_cannot_reach_mlflow(these):
    del orchestrator(these)["template"]["metadata"]["labels"]["errata.io/tracking"]


@mutation("flows")
def workers_that_reach_redis(these):
    ray(these)["workerGroupSpecs"][0]["template"]["metadata"]["labels"]["errata.io/redis"] = "client"


@mutation("commands")
def an_option_that_does_not_exist(these):
    container(these)["args"][3] = "--out"


@mutation("commands")
def a_command_that_does_not_exist(these):
    find(these, "CronJob", "errata-verify")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"][
        1
    ] = "check"


@mutation("commands")
def a_file_that_is_not_mounted(these):
    container(these)["args"][4] = "/var/lib/errata/run"


@mutation("commands", "jobs/sweep")
def a_job_with_a_misspelled_option(these):
    job = find(these, "RayJob", "errata-sweep")["spec"]
    set_to(job, "entrypoint", job["entrypoint"].replace("--jobs", "--job-count"))


def _configuration(these: list[Object]) -> tuple[Object, str]:
    (held,) = [t for t in these if t["kind"] == "ConfigMap" and t["metadata"]["name"].startswith("errata-config")]
    return held["data"], held["data"]["run.yaml"]


@mutation("configurations")
def a_key_that_the_program_does_not_know(these):
    data, text = _configuration(these)
    data["run.yaml"] = text.replace("batching:", "batchin:")


@mutation("configurations")
def a_label_that_no_group_has(these):
    data, text = _configuration(these)
    data["run.yaml"] = text.replace("errata.io/group: editor", "errata.io/group: edit")


@mutation("configurations")
def more_workers_than_the_groups_hold(these):
    set_to(ray(these)["workerGroupSpecs"][2], "maxReplicas", 2)


@mutation("configurations")
def more_workers_in_an_estimate_than_the_groups_can_grow_to(these):
    data, text = _configuration(these)
    data["run.yaml"] = text.replace("generation_workers_max: 6", "generation_workers_max: 9")
    assert data["run.yaml"] != text


@mutation("configurations")
def a_tracking_server_that_is_elsewhere(these):
    data, text = _configuration(these)
    data["run.yaml"] = text.replace("http://errata-mlflow:5000", "http://mlflow:5000")


def _published(these: list[Object], old: str, new: str) -> None:
    data, text = _configuration(these)
    data["run.yaml"] = text.replace(old, new)
    assert data["run.yaml"] != text


@mutation("configurations")
def a_model_server_that_no_version_reaches_by_itself(these):
    _published(these, "  every: 5\n  to:", "  to:")


@mutation("configurations", "overlays/gpu")
def a_model_server_that_nobody_names(these):
    _published(these, 'every: 5\n  to: ["vllm=http://errata-vllm:8000"]', "to: []")


@mutation("configurations")
def adapters_where_the_model_server_cannot_read_them(these):
    _published(these, "/var/lib/errata/shared/adapters", "/var/lib/errata/state/adapters")


@mutation("configurations", "overlays/gpu")
def adapters_larger_than_the_model_server_takes(these):
    _published(these, "max_rank: 512", "max_rank: 1024")


@mutation("configurations")
def a_model_server_of_another_model(these):
    arguments = find(these, "Deployment", "errata-vllm")["spec"]["template"]["spec"]["containers"][0]["args"]
    arguments[0] = "meta-llama/Llama-3.2-1B-Instruct"


@mutation("metrics")
def an_alert_on_a_metric_that_is_not_there(these):
    rule = find(these, "PrometheusRule", "errata")["spec"]["groups"][0]["rules"][0]
    set_to(rule, "expr", "absent(errata_up)")


@mutation("metrics")
def an_alert_without_its_page(these):
    rule = find(these, "PrometheusRule", "errata")["spec"]["groups"][0]["rules"][0]
    rule["annotations"]["runbook"] = "docs/operations.md, What to do"


@pytest.mark.parametrize("name", NAMED)
def test_a_broken_manifest_is_seen(name, objects, checks):
    of, check, change = NAMED[name]
    if check not in checks:
        pytest.skip("KubeRay's definitions are not beside the checkout (../shared/data/crds)")
    whole, broken = objects(of), objects(of)
    change(broken)
    assert broken != whole
    before, after = set(checks[check](whole)), checks[check](broken)
    assert set(after) - before, f"{check} does not see it"


def test_there_are_enough_of_them():
    assert len(NAMED) >= 25
    assert len({check for _, check, _ in NAMED.values()}) >= 20
