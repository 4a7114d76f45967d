# shellcheck shell=bash
# Sourced by gke.sh: the manifest of a training job.

# A YAML string; JSON strings are YAML.
yaml() {
    local text="${1//\\/\\\\}"
    echo "\"${text//\"/\\\"}\""
}

# Each word as an item of a YAML list, indented by $1.
yaml_items() {
    local indent="$1" word
    shift
    for word in "$@"; do echo "$indent- $(yaml "$word")"; done
}

# Prints the JobSet: a Job for each slice, a pod for each host. Reads OPTION, TRAIN and what
# read_tpu sets. jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2,
# cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice
jobset() {
    local queue="" spot="" spot_toleration="" annotations="" mount="" volume=""
    if [ -n "${OPTION[bucket]:-}" ]; then
        annotations="
            metadata:
              annotations:
                gke-gcsfuse/volumes: \"true\""
        mount="
                    - name: bucket
                      mountPath: $SHARED"
        volume="
                - name: bucket
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: $(yaml "${OPTION[bucket]}")
                      mountOptions: implicit-dirs,rename-dir-limit=1000000"
    fi
    if [ -n "${OPTION[queue]:-}" ]; then
        queue="
  labels:
    kueue.x-k8s.io/queue-name: $(yaml "${OPTION[queue]}")"
    fi
    if [ -n "${OPTION[spot]:-}" ]; then
        spot="
                cloud.google.com/gke-spot: \"true\""
        spot_toleration="
                - key: cloud.google.com/gke-spot
                  operator: Exists"
    fi
    cat << EOF_MANIFEST
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ${OPTION[name]}$queue
  annotations:
    # A slice stays within one node pool, and has it to itself.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    rules:
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              # 2 is a user error, 3 a run that diverged: a restart fixes neither.
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2, 3]
          template:$annotations
            spec:
              serviceAccountName: $(yaml "${OPTION[service-account]:-default}")
              restartPolicy: Never
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: ${GKE_ACCELERATOR[$GENERATION]}
                cloud.google.com/gke-tpu-topology: $TOPOLOGY$spot
              tolerations:
                - key: google.com/tpu
                  operator: Exists$spot_toleration
              containers:
                - name: train
                  image: $(yaml "${OPTION[image]}")
                  command: [python]
                  args:
$(yaml_items "                    " "${TRAIN[@]}")
                  env:
                    - name: LIBTPU_INIT_ARGS
                      value: $(yaml "$(compiler_flags "$GENERATION" "$SLICES")")
                    - name: JAX_COMPILATION_CACHE_DIR
                      value: $(yaml "$(compilation_cache "${OPTION[workdir]}")")
                    - name: PYTHONUNBUFFERED
                      value: "1"
                  ports:
                    - containerPort: 8471
                    - containerPort: 8080
                    - containerPort: 8482
                  resources:
                    limits:
                      google.com/tpu: $CHIPS_A_HOST
                  volumeMounts:$mount
                    - name: memory
                      mountPath: /dev/shm
              volumes:$volume
                - name: memory
                  emptyDir:
                    medium: Memory
EOF_MANIFEST
}
