#!/bin/sh
# A worker in another language, here the shell: it needs nothing but psql and a DSN.
#
#     ./shell_worker.sh 'postgresql://…'
#
# psql knows no `embedded:` addresses; docs/how-to/embedded.md says how to have one that it knows.
#
# It runs the jobs of the task `echo` until none is left. A worker that stays longer also calls
# heartbeat_v1 every few seconds, or its jobs are given to others, and tick_v1 now and then.
set -eu
ask() { psql -XAtq -v ON_ERROR_STOP=1 -d "$dsn" "$@"; }
dsn=$1

worker=$(ask -c "select procrastinate.register_worker_v1('shell', tasks => '{\"echo\": {}}')")
while true; do
    job=$(ask -c "select id, token, task, args from procrastinate.fetch_v1($worker)")
    [ -n "$job" ] || break
    IFS='|' read -r id token task args <<END
$job
END
    if [ "$task" = echo ]; then
        echo "job $id: $args"
        outcome=succeeded
    else
        outcome=unknown_task
    fi
    ask -c "select verdict from procrastinate.finish_v1($worker,
        outcomes => '[{\"id\": $id, \"token\": $token, \"outcome\": \"$outcome\"}]')" >/dev/null
done
ask -c "select procrastinate.unregister_worker_v1($worker)" >/dev/null
