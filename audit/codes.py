"""What a code means, as a sentence for people: the words of `docs/codes.md`, which a test compares with these."""

from __future__ import annotations

from collections.abc import Mapping

# Calls that went well: one that asks its client for something first did what it could.
CARRIED_OUT = ("ok", "input_required")

MEANINGS: Mapping[str, str] = {
    "ok": "carried out, and the tool reports no error",
    "tool_error": "carried out, and the tool itself reports an error",
    "input_required": (
        "the upstream asks the client for something first: as an outcome, it goes on with the answers as another call;"
        " as an intent, the call waits for them"
    ),
    "call_lost": (
        "the worker that held a call has ended while its client was away or asked; a call with effects is on record as"
        " `unknown`"
    ),
    "holder_unreachable": (
        "another worker holds the parked call, and Redis, over which it is reached, is away, or lost what one told the"
        " other"
    ),
    "too_many_parked": "so many calls of this user, or of this worker, wait for their clients that this one cannot",
    "answered": "the client has answered what it was asked, recorded before the upstream gets the answers",
    "intended": "the intent of a call that has effects, recorded before it starts",
    "not_called": "the outcome of an intent that could not be recorded in time, or whose caller had left by then",
    "unknown": (
        "an intent that got no outcome in time, since the process died or the ledger was away: what the tool did is not"
        " known here"
    ),
    "cancelled": "the call was broken off: its client left or withdrew it, or the process stopped",
    "unknown_tool": "there is no such tool; in answers also when it is not granted",
    "unknown_prompt": "there is no such prompt; in answers also when it is not granted",
    "unknown_resource": (
        "there is no such resource, and no template leads to it; in answers also when it is not granted"
    ),
    "unknown_template": "there is no such template; in answers also when it is not granted",
    "not_granted": "in the ledger only: the tool exists, and no grant of the caller names it",
    "budget_exhausted": "the calls per minute of this principal for this tool are spent",
    "task_required": "the tool is called as a task only, and the client does not declare the Tasks extension",
    "too_many_tasks": "so many tasks of this user are under way as `TASKS_PER_USER` allows",
    "tasks_unavailable": "tasks cannot be kept at this moment, since the database is away",
    "unknown_task": "there is no such task, its time is over, it is another user's, or its tool is not granted",
    "task_lost": "the process that carried the task out ended, and its tool, which only reads, could not be begun anew",
    "task_timeout": "the task took longer than `TASK_TIMEOUT_SECONDS`",
    "task_finished": "by REST: what has ended cannot be cancelled (409)",
    "task_answered": "the user answered what a task had asked",
    "task_cancel_requested": "somebody cancelled a task",
    "invalid_arguments": "the arguments do not fit the schema, or the database cannot use a value",
    "too_many_refusals": (
        "so many calls of this principal were refused that the next are counted, not recorded one by one"
    ),
    "too_many_listeners": "the user, or all users together, have as many streams open at this worker as may be (429)",
    "malformed": (
        "the request was no call that could be read: bad JSON, headers that differ from the body, a wrong shape"
    ),
    "refused_unread": (
        "a request at `/mcp` that was refused before it was read: for its path, host, origin, method, types, or a"
        " header that occurs twice; one record an address and minute says why"
    ),
    "ledger_unavailable": "the record could not be made durable, so nothing is answered (503)",
    "outcome_unknown": "the tool was called, and its outcome could not be recorded in time (503)",
    "sessions_unavailable": "what needs the session of a client of an older revision, and Redis does not answer (503)",
    "policy_unavailable": "this process has no current policy, so nothing is allowed (503)",
    "internal_error": "the connector, or the site, failed in a way that nobody foresaw; the log says more",
    "egress_denied": "the address may not be reached: an egress rule is missing, or it is a metadata service",
    "upstream_unavailable": "it cannot be reached, refuses the login, or broke the connection",
    "upstream_busy": (
        "all connections that its `max_connections` allows, or calls that its `max_calls` allows, are in use"
    ),
    "upstream_timeout": "no answer in time",
    "upstream_refused": "it answered with an error of its protocol, or lacks the right",
    "upstream_http_error": "it answered with an HTTP status that is no success",
    "bad_upstream_answer": "its answer does not follow the protocol",
    "capability_missing": "it needs a capability that the client did not declare",
    "client_refused": "it asked the client that called for something, and that refused, or gave no answer in time",
    "unsupported_result": "its answer is of a kind that this caller cannot be given, for instance a question",
    "unsupported_version": "it speaks a revision that is not known here",
    "result_too_large": "its answer is larger than `MAX_RESULT_BYTES`",
    "too_many_tools": "it lists more than is taken: 5,000 of a kind, 100 pages, 32 MB",
    "read_only": "a statement tried to write in a source that only reads",
    "run_queued": "somebody started a run",
    "run_started": "the agent worker began with it",
    "model_answered": "the model gave an answer, or asked for tools",
    "run_cancel_requested": "somebody cancelled it",
    "run_succeeded": "it has an answer",
    "run_failed": "it ended without one; `outcome` in the record's detail says why",
    "run_cancelled": "it was stopped because somebody wanted it",
    "agent_disabled": "the agent, its account or who started the run was switched off (by REST: 409)",
    "provider_disabled": "the model provider was switched off",
    "model_not_installed": "the package for this kind of provider is missing",
    "model_unavailable": "the model's server cannot be reached",
    "model_timeout": "the model kept silent for too long",
    "model_failed": "the model's server refused, or failed",
    "bad_model_answer": "the answer is empty, cannot be read, or is too large",
    "script_error": "a scripted model cannot follow its script",
    "model_call_limit": "the model was asked as often as the agent's limit allows, without a result",
    "tool_call_limit": "the model wanted more calls of tools than the agent's limit allows",
    "token_limit": "the tokens of the run are used up",
    "time_limit": "the run took longer than the agent's limit allows",
    "worker_stopped": "the agent worker was stopped in the middle of it",
    "worker_lost": "the agent worker died in the middle of it",
    "not_started": "no agent worker took it for an hour",
    "too_many_runs": "by REST: too many runs of this user are not finished (429)",
    "too_many_streams": "by REST: this user follows too many runs at the same time (429)",
    "run_finished": "by REST: what is finished cannot be cancelled (409)",
    "create": "something was created",
    "update": "something was changed; the record has before and after",
    "delete": "something was deleted, with what went along",
    "test": "the connection of a data source was tested",
    "sync": "the tools of a data source were synchronised, or could not be: `ok` in the detail says which",
    "token_created": "an API token was made",
    "token_revoked": "an API token was revoked",
    "login": "somebody logged in",
    "logout": "somebody logged out, or ended a session",
    "token_refreshed": "a session was continued with its refresh token",
    "refresh_reused": "a refresh token was used a second time: somebody else may have it, and its session was ended",
    "arguments_read": "somebody read what the record keeps that `object_id` names; `reason` in the detail says why",
    "value_sought": (
        "somebody asked whether a value occurs in calls, or whether there is anything to erase of it; the detail says"
        " of which, and why, not the value"
    ),
    "subject_erased": "the keys of what is kept of a person were destroyed; the detail says how many, and why",
    "reading_refused": "without a reason nothing that is kept encrypted is shown (400)",
    "too_many_readings": "this person has read as often as `ARGUMENT_READS_PER_HOUR` allows (429)",
    "unknown_subject": "there is neither an account nor a record of this user (404)",
    "erasure_refused": "nothing was erased: there is no reason given, or no key left (400)",
    "ledger_verified": "the ledger was verified, and is as it was sealed; the detail says what was looked at",
    "ledger_faulty": (
        "the ledger was verified, and is not as it was sealed; the detail has the verdict and the first findings"
    ),
    "keys_rotated": "stored secrets were encrypted anew",
    "stream_moved": "the place of a stream was set to another time; `detail` says from where to where",
    "stream_gap_acknowledged": "somebody took note that a stream had missed records",
    "stream_alarm": "a stream lags behind, cannot deliver, or missed records that were gone; `detail` says which",
    "stream_recovered": "a stream is well again",
    "ledger_key_rotated": "another key signs the heads of the ledger from now on; both have signed that",
    "ledger_records_refused": "records that are not as their writer wrote them were found, and not sealed",
    "ledger_restored": "somebody accepted that an older state of the ledger was restored, and said why",
    "ledger_not_sealed": "the sealer cannot go on; `message` in the detail, and its log, say why, and what to do",
    "signing_key_unavailable": "AWS KMS did not sign: nothing is sealed until it does; for the log of the sealer",
    "writer_started": "a process that carries out calls began to write records under its `writer_id`",
    "writer_stopped": "it ended in good order: this is the last record of its `writer_id`",
    "job_worker_started": "the job worker began to work",
    "job_worker_stopped": "the job worker ended in good order",
    "configuration_changed": (
        "a process was started with other settings than the last one; `changes` has before and after"
    ),
    "migrations_applied": "the schema of the database was changed; `migrations` in the detail names by what",
    "check_failed": "a data source did not answer its regular check, or a test, and had before",
    "check_recovered": "a data source answers again",
    "server_started": "a process of a local MCP server was started, by the first call or after it had ended",
    "server_ended": "a process of a local MCP server ended by itself, or was ended because of what it did",
    "server_stopped": "a process of a local MCP server was stopped, since nobody needed it or its data source changed",
    "spool_drained": "records that a process left in its spool were written; `damaged_bytes` of it could not be read",
    "record_refused": (
        "the database refused a record for good: the number `writer_seq` of the writer in the detail stays empty"
    ),
    "invalid_credentials": "wrong user name or password, an inactive user, or a service account (401)",
    "too_many_attempts": "too many wrong passwords; refused before the password is looked at (429)",
    "invalid_token": "a token that is unknown, expired or revoked (401); one record an address and minute says why",
    "session_opened": (
        "an MCP client of an older revision began a session with `initialize`; one record a minute for each token and "
        "client, and `unrecorded_before` says how many had none"
    ),
    "session_ended": "it ended its session; recorded likewise. One that is not used any more ends without a record",
    "anchor_failed": "a sink of `LEDGER_ANCHORS` did not take a head; recorded at the first of several failures",
    "anchor_recovered": "the sink takes heads again",
    "head_behind": "a witness or an anchor holds a later head than the ledger: an older state was restored",
    "head_forked": "a witness or an anchor holds another head than the ledger, with the same number or before it",
    "head_inconsistent": "the records that a witness or an anchor vouches for are not the first ones of the ledger",
    "export_requested": "somebody asked for an export of records; `scope` in the detail says of which",
    "export_made": "the archive of an export is ready; the record has the digest of its manifest",
    "export_failed": "an export ended without an archive; `outcome` in the detail says why",
    "export_cancelled": "somebody gave an export up",
    "export_downloaded": "somebody downloaded the archive of an export",
    "export_expired": "the archive of an export was deleted when its time was over",
    "export_deleted": "somebody deleted an export",
    "reason_required": "arguments of calls are exported with a reason only (400)",
    "too_many_exports": "five exports of this user are not finished (429)",
    "exports_full": "the archives that are kept have reached `EXPORT_TOTAL_MB` (409)",
    "too_large": (
        "the archive would be larger than `EXPORT_MAX_MB`; by REST: the body is larger than `MCP_MAX_BODY_BYTES` (413)"
    ),
    "too_slow": "finding the records took too long",
    "disk_full": "the disk of the database is full",
    "sealer_away": "no sealer signed a manifest in time; for the log, and the page of the export",
    "partitions_made": "the partitions of the ledger for coming months were made",
    "archive_begun": "somebody asked for a cold export of a month of the ledger, or for one that failed to go on",
    "archive_verified": "a month of the ledger was exported, signed and read back",
    "archive_failed": "a cold export failed; the record says why",
    "expiry_due": "records of a month are past the time of their retention class",
    "expiry_proposed": "somebody proposed that these records leave the ledger",
    "expiry_approved": "somebody else approved it, and a gap certificate was made",
    "expiry_withdrawn": "a proposal, or an approval, was withdrawn: the records stay",
    "records_dropped": "records left the ledger under a gap certificate, which the record names",
    "archive_refused": "the month cannot be exported as it is; for the page of the month",
    "archive_unavailable": "the archive cannot be written or read; for the page of the month",
    "archive_not_proven": (
        "what was read back from the archive is not what the ledger has sealed; for the page of the month"
    ),
    "expiry_refused": "records cannot leave as it was asked for; for the page of the month",
    "held": "a legal hold keeps what was to be dropped or erased",
    "erased": "what the record kept was erased: its data key is destroyed, and nobody can read it any more (410)",
    "decryption_failed": (
        "a stored value that no key of the ring opens in its place; for the log, and the test of a source"
    ),
}


def meaning_of(code: str) -> str:
    """A sentence, or an empty string for a code that is not known here."""
    found = MEANINGS.get(code, "").replace("`", "")
    return f"{found[:1].upper()}{found[1:]}." if found else ""
