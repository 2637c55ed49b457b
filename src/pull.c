/*
 * pull(), ack(), extend(), nack(): the consumer's side of a pull subscription.
 *
 * The worker says which events are leased; the events themselves are read here, with a snapshot taken afterwards, whatever the isolation level: they have been committed
 * before they were leased.
 *
 * ack() and nack() are told the worker at once, which checks the lease, and take effect when the transaction commits.  What happened in a subtransaction that was rolled back is
 * withdrawn before the commit.  The end of the transaction is told without anything that could fail (call.h).
 */
#include "postgres.h"

#include "access/xact.h"
#include "call.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fault.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pull.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#define SHORTEST_LEASE ((int64) 100 * 1000)
#define LONGEST_LEASE ((int64) 12 * 3600 * USECS_PER_SEC)
#define LONGEST_RETRY ((int64) 30 * USECS_PER_DAY)

/* An ack or nack of the current transaction. */
typedef struct Settlement
{
	int			number;
	SubTransactionId subxact;	/* of which it is part */
	bool		undone;
	int32		subscription;
} Settlement;

/* The current transaction's; settlements is in TopTransactionContext. */
static OutboxDatabase *database = NULL;
static OutboxTicket ticket;
static List *settlements = NIL;

/* ---- the end of the transaction ---- */

static void
withdraw_undone(void)
{
	OutboxCall *call = palloc(sizeof(OutboxCall));
	ListCell   *cell;

	foreach(cell, settlements)
	{
		Settlement *settlement = lfirst(cell);

		if (!settlement->undone)
			continue;
		memset(call, 0, offsetof(OutboxCall, events));
		call->op = OUTBOX_CALL_WITHDRAW;
		call->subscription = settlement->subscription;
		call->ticket = ticket;
		call->number = settlement->number;
		outbox_call(database, call);
		settlement->undone = false;
	}
	pfree(call);
}

static void
end_ticket(bool committed)
{
	outbox_call_tell(database, ticket, committed);
	database = NULL;
	settlements = NIL;
}

static void
at_transaction_end(XactEvent event, void *arg)
{
	if (database == NULL)
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		OUTBOX_FAULT("settle-before-commit");
			withdraw_undone();
			break;
		case XACT_EVENT_PRE_PREPARE:
			ereport(ERROR,
					errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					errmsg("cannot PREPARE a transaction that has executed outbox.ack() or outbox.nack()"),
					errdetail("The lease would have to outlive the session and the delivery worker."),
					errhint("Acknowledge in a transaction of its own, after COMMIT PREPARED."));
			break;
		case XACT_EVENT_COMMIT:
		OUTBOX_FAULT_QUIET("settle-after-commit");
			end_ticket(true);
			break;
		case XACT_EVENT_ABORT:
			end_ticket(false);
			break;
		default:
			break;
	}
}

static void
at_subtransaction_end(SubXactEvent event, SubTransactionId subxact, SubTransactionId parent, void *arg)
{
	ListCell   *cell;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(cell, settlements)
	{
		Settlement *settlement = lfirst(cell);

		if (settlement->subxact != subxact)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			settlement->subxact = parent;
		else
			settlement->undone = true;
	}
}

void
outbox_pull_install(void)
{
	RegisterXactCallback(at_transaction_end, NULL);
	RegisterSubXactCallback(at_subtransaction_end, NULL);
}

/* A place for one more settlement of this transaction. */
static Settlement *
new_settlement(OutboxDatabase *of, int32 subscription)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	Settlement *settlement = palloc(sizeof(Settlement));

	*settlement = (Settlement) {.number = list_length(settlements) + 1, .subxact = GetCurrentSubTransactionId(), .subscription = subscription};
	if (database == NULL)
	{
		ticket = outbox_call_ticket();
		database = of;
	}
	settlements = lappend(settlements, settlement);
	MemoryContextSwitchTo(old);
	return settlement;
}

/* ---- reading tables: as they are now, whatever the transaction's snapshot ---- */

static void
execute_now(SPIPlanPtr *plan, const char *sql, int n, Oid *types, Datum *values)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int			result;

	if (*plan == NULL)
	{
		SPIPlanPtr	prepared = SPI_prepare(sql, n, types);

		if (prepared == NULL || SPI_keepplan(prepared) != 0)
			elog(ERROR, "could not prepare \"%s\": %s", sql, SPI_result_code_string(SPI_result));
		*plan = prepared;
	}
	result = SPI_execute_snapshot(*plan, values, NULL, snapshot, InvalidSnapshot, true, false, 0);
	if (result != SPI_OK_SELECT)
		elog(ERROR, "could not execute \"%s\": %s", sql, SPI_result_code_string(result));
	UnregisterSnapshot(snapshot);
}

/* The id of the pull subscription with this name. */
static int32
find_subscription(text *name)
{
	static SPIPlanPtr plan = NULL;
	Oid			type = TEXTOID;
	Datum		value = PointerGetDatum(name);
	char	   *shown = text_to_cstring(name);
	bool		isnull;
	bool		pull;
	int32		id;

	SPI_connect();
	execute_now(&plan, "SELECT id, kind = 'pull' FROM outbox.subscription WHERE name = $1", 1, &type, &value);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("subscription \"%s\" does not exist", shown),
				 errdetail("No subscription has this name."),
				 errhint("Call outbox.subscribe() without a URL to make a pull subscription.")));
	id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	pull = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	SPI_finish();
	if (!pull)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" is not a pull subscription", shown),
				 errdetail("It has a URL: its events are pushed there."),
				 errhint("Call outbox.subscribe() without a URL to make a pull subscription.")));
	return id;
}

/* ---- arguments ---- */

static void
refuse_null(FunctionCallInfo fcinfo, int argument, const char *name)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name),
				 errdetail("There is nothing that NULL could stand for."),
				 errhint("Give a value.")));
}

static int64
span_of(const Interval *span)
{
	/* a day has 24 hours, a month 30 days; beyond what any bound permits precision does not matter */
	float8		us = (float8) span->time + ((float8) span->day + (float8) span->month * DAYS_PER_MONTH) * USECS_PER_DAY;

	return us > (float8) 1e15 ? (int64) 1e15 : us < (float8) -1e15 ? (int64) -1e15 : (int64) us;
}

static int64
span_argument(FunctionCallInfo fcinfo, int argument, const char *name, int64 lowest, int64 highest, const char *bounds)
{
	int64		us = span_of(PG_GETARG_INTERVAL_P(argument));

	if (us < lowest || us > highest)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for \"%s\"", name),
				 errdetail("It is not between %s.", bounds),
				 errhint("Choose a value between %s.", bounds)));
	return us;
}

static void
ids_argument(FunctionCallInfo fcinfo, int argument, OutboxCall *call)
{
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	call->all = PG_ARGISNULL(argument);
	if (call->all)
		return;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argument), UUIDOID, UUID_LEN, false, TYPALIGN_CHAR, &elements, &nulls, &n);
	if (n > OUTBOX_CALL_EVENTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("too many event ids"),
				 errdetail("The list has %d elements; at most %d are permitted.", n, OUTBOX_CALL_EVENTS),
				 errhint("Leave ids out (NULL) to settle the whole lease.")));
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("ids must not contain null"),
					 errdetail("Element %d of the list is NULL.", i + 1),
					 errhint("List ids of events that were pulled, or give NULL instead of the list for all of them.")));
		call->events[i].id = *DatumGetUUIDP(elements[i]);
	}
	call->n = n;
}

static char *
uuid_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/* ---- asking ---- */

static OutboxDatabase *
this_database(const char *function)
{
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
	return outbox_bell_database(outbox_catalog_required()->extension);
}

static void
ask(OutboxDatabase *of, OutboxCall *call, text *name)
{
	outbox_call(of, call);
	switch (call->answer)
	{
		case OUTBOX_ANSWER_DONE:
			return;
		case OUTBOX_ANSWER_UNKNOWN:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the delivery worker does not know subscription \"%s\" yet", text_to_cstring(name)),
					 errdetail("It has not read the subscription, or the transaction that made it has not committed."),
					 errhint("Try again in a moment.")));
			break;
		case OUTBOX_ANSWER_STALE:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("lease %s of subscription \"%s\" is not held any more", uuid_text(&call->token), text_to_cstring(name)),
					 errdetail("It expired, was settled, or was lost when the delivery worker was started anew; its events are delivered to whoever pulls next."),
					 errhint("Pull again. Work that takes long needs a longer lease, or outbox.extend().")));
			break;
		case OUTBOX_ANSWER_FOREIGN:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("event %s is not in lease %s of subscription \"%s\"", uuid_text(&call->events[0].id), uuid_text(&call->token), text_to_cstring(name)),
					 errdetail("It was not pulled with it, or has been settled. Nothing of this call was done."),
					 errhint("Settle each event once, with the token that came with it.")));
			break;
		case OUTBOX_ANSWER_TAKEN:
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("event %s is being settled by another transaction", uuid_text(&call->events[0].id)),
					 errdetail("That transaction has acknowledged it with the same token, and has not ended. Nothing of this call was done."),
					 errhint("Use a token in one session at a time.")));
			break;
	}
}

/* ---- pull ---- */

#define PULLED_COLUMNS 13

/* The events of a lease, in its order. */
static void
return_events(ReturnSetInfo *result, const OutboxCall *call)
{
	static SPIPlanPtr plan = NULL;
	Oid			type = UUIDARRAYOID;
	Datum	   *ids = palloc(call->n * sizeof(Datum));
	Datum		value;

	for (int i = 0; i < call->n; i++)
		ids[i] = UUIDPGetDatum(&call->events[i].id);
	value = PointerGetDatum(construct_array(ids, call->n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	SPI_connect();

	/* A retirement may have moved some to kept_event before we had our locks, and after our snapshot.  It cannot now. */
	for (int i = 0; i < 2 && (i == 0 || SPI_processed < (uint64) call->n); i++)
		execute_now(&plan,
				"SELECT l.n::integer, l.id, e.type, e.key, e.tenant, e.payload, e.body, e.content_type, e.headers, e.traceparent, e.created_at"
				"  FROM unnest($1) WITH ORDINALITY AS l (id, n)"
				"  LEFT JOIN outbox.unscheduled AS u ON u.id = l.id"
				" CROSS JOIN LATERAL (SELECT * FROM outbox.event AS t WHERE t.id = coalesce(u.log_id, l.id)"
				"                     UNION ALL SELECT * FROM outbox.kept_event AS t WHERE t.id = coalesce(u.log_id, l.id) LIMIT 1) AS e"
				" ORDER BY l.n", 1, &type, &value);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		values[PULLED_COLUMNS + 1];
		bool		nulls[PULLED_COLUMNS + 1] = {false};
		const OutboxCallEvent *event;

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, values, nulls);
		event = &call->events[DatumGetInt32(values[0]) - 1];
		values[11] = Int32GetDatum(event->attempts + 1);
		values[12] = UUIDPGetDatum(&call->token);
		values[13] = TimestampTzGetDatum(call->until);
		tuplestore_putvalues(result->setResult, result->setDesc, &values[1], &nulls[1]);
	}
	SPI_finish();
}

/* pull(subscription text, max_events integer, lease interval) → (event_id, type, key, …, attempt, token, leased_until): see the install script. */
PG_FUNCTION_INFO_V1(outbox_pull);
Datum
outbox_pull(PG_FUNCTION_ARGS)
{
	OutboxDatabase *of = this_database("outbox.pull()");
	OutboxCall *call = palloc(sizeof(OutboxCall));

	refuse_null(fcinfo, 0, "subscription");
	refuse_null(fcinfo, 1, "max_events");
	refuse_null(fcinfo, 2, "lease");
	memset(call, 0, offsetof(OutboxCall, events));
	call->op = OUTBOX_CALL_LEASE;
	call->most = PG_GETARG_INT32(1);
	if (call->most < 1 || call->most > OUTBOX_CALL_EVENTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for \"%s\"", "max_events"),
				 errdetail("%d is not between 1 and %d.", call->most, OUTBOX_CALL_EVENTS),
				 errhint("Choose a value between 1 and %d.", OUTBOX_CALL_EVENTS)));
	call->lease = span_argument(fcinfo, 2, "lease", SHORTEST_LEASE, LONGEST_LEASE, "100 ms and 12 h");
	call->subscription = find_subscription(PG_GETARG_TEXT_PP(0));
	call->token = *DatumGetUUIDP(DirectFunctionCall1(gen_random_uuid, (Datum) 0));
	InitMaterializedSRF(fcinfo, 0);

	ask(of, call, PG_GETARG_TEXT_PP(0));
	if (call->n > 0)
		return_events((ReturnSetInfo *) fcinfo->resultinfo, call);
	return (Datum) 0;
}

/* ---- ack, nack, extend ---- */

/* An ack or nack: what both are given; the rest is the caller's to set. */
static OutboxCall *
settlement_arguments(FunctionCallInfo fcinfo, OutboxCallOp op)
{
	OutboxCall *call = palloc(sizeof(OutboxCall));

	refuse_null(fcinfo, 0, "subscription");
	refuse_null(fcinfo, 2, "token");
	memset(call, 0, offsetof(OutboxCall, events));
	call->op = op;
	call->token = *PG_GETARG_UUID_P(2);
	ids_argument(fcinfo, 1, call);
	return call;
}

static int64
settle(OutboxDatabase *of, OutboxCall *call, text *name)
{
	Settlement *settlement;

	call->subscription = find_subscription(name);
	if (!call->all && call->n == 0)
		return 0;
	if (database != NULL)
		withdraw_undone();		/* what is settled now may have been before, in a subtransaction that was rolled back */
	settlement = new_settlement(of, call->subscription);
	call->ticket = ticket;
	call->number = settlement->number;
	ask(of, call, name);
	return call->n;
}

/* ack(subscription text, ids uuid[], token uuid) → bigint: how many are settled, when this transaction commits. */
PG_FUNCTION_INFO_V1(outbox_ack);
Datum
outbox_ack(PG_FUNCTION_ARGS)
{
	OutboxDatabase *of = this_database("outbox.ack()");
	OutboxCall *call = settlement_arguments(fcinfo, OUTBOX_CALL_ACK);

	PG_RETURN_INT64(settle(of, call, PG_GETARG_TEXT_PP(0)));
}

/* nack(subscription text, ids uuid[], token uuid, retry_in interval, reason text) → bigint: the same; retry_in NULL: by the subscription's retry policy. */
PG_FUNCTION_INFO_V1(outbox_nack);
Datum
outbox_nack(PG_FUNCTION_ARGS)
{
	OutboxDatabase *of = this_database("outbox.nack()");
	OutboxCall *call = settlement_arguments(fcinfo, OUTBOX_CALL_NACK);

	call->retry_in = PG_ARGISNULL(3) ? -1 : span_argument(fcinfo, 3, "retry_in", 0, LONGEST_RETRY, "0 and 30 d");
	if (!PG_ARGISNULL(4))
	{
		char	   *reason = text_to_cstring(PG_GETARG_TEXT_PP(4));
		int			size = pg_mbcliplen(reason, strlen(reason), OUTBOX_CALL_REASON - 1);

		memcpy(call->reason, reason, size);
	}
	PG_RETURN_INT64(settle(of, call, PG_GETARG_TEXT_PP(0)));
}

/* extend(subscription text, token uuid, lease interval) → timestamptz: until when it is held now; at once, whatever becomes of this transaction. */
PG_FUNCTION_INFO_V1(outbox_extend);
Datum
outbox_extend(PG_FUNCTION_ARGS)
{
	OutboxDatabase *of = this_database("outbox.extend()");
	OutboxCall *call = palloc(sizeof(OutboxCall));

	refuse_null(fcinfo, 0, "subscription");
	refuse_null(fcinfo, 1, "token");
	refuse_null(fcinfo, 2, "lease");
	memset(call, 0, offsetof(OutboxCall, events));
	call->op = OUTBOX_CALL_EXTEND;
	call->token = *PG_GETARG_UUID_P(1);
	call->lease = span_argument(fcinfo, 2, "lease", SHORTEST_LEASE, LONGEST_LEASE, "100 ms and 12 h");
	call->subscription = find_subscription(PG_GETARG_TEXT_PP(0));
	ask(of, call, PG_GETARG_TEXT_PP(0));
	PG_RETURN_TIMESTAMPTZ(call->until);
}
