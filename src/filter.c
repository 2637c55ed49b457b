/*
 * Filters: a jsonpath that the payload of an event must fulfil.
 *
 * The same function serves delivery and SQL (routes, trace, event_status), so that they cannot disagree.  Whether a path is to be true or to find something is seen in the path alone,
 * not in the payload: `$.amount > 100` is a predicate, `$.amount ? (@ > 100)` and `$.paid` are not.
 *
 * The server's functions for @@ and @? suppress what the data does to a path, but not all errors: a comparison of times may need a time zone, a regular expression may be
 * too complex.  Those are caught here.  That needs no subtransaction: evaluation touches memory, and reads catalogs at most.
 */
#include "postgres.h"

#include "access/xact.h"
#include "filter.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

typedef enum Task
{
	TASK_MATCH,					/* @@ */
	TASK_EXISTS,				/* @? */
	TASK_PARSE
} Task;

/* Is its value that of a predicate, with nothing applied to it? */
static bool
is_predicate(JsonPath *filter)
{
	JsonPathItem item;

	jspInit(&item, filter);
	if (jspHasNext(&item))
		return false;
	switch (item.type)
	{
		case jpiAnd:
		case jpiOr:
		case jpiNot:
		case jpiIsUnknown:
		case jpiEqual:
		case jpiNotEqual:
		case jpiLess:
		case jpiGreater:
		case jpiLessOrEqual:
		case jpiGreaterOrEqual:
		case jpiExists:
		case jpiStartsWith:
		case jpiLikeRegex:
			return true;
		default:
			return false;
	}
}

/* NULL is the answer "unknown". */
static Datum
evaluate(PGFunction operator, Jsonb *payload, JsonPath *filter)
{
	LOCAL_FCINFO(call, 2);
	Datum		result;

	InitFunctionCallInfoData(*call, NULL, 2, InvalidOid, NULL, NULL);
	call->args[0].value = JsonbPGetDatum(payload);
	call->args[0].isnull = false;
	call->args[1].value = PointerGetDatum(filter);
	call->args[1].isnull = false;
	result = operator(call);
	return call->isnull ? (Datum) 0 : result;
}

static Datum
perform(Task task, void *subject, JsonPath *filter)
{
	if (task == TASK_PARSE)
		return DirectFunctionCall1(jsonb_in, CStringGetDatum((char *) subject));
	return evaluate(task == TASK_MATCH ? jsonb_path_match_opr : jsonb_path_exists_opr, subject, filter);
}

/* What says nothing about the filter: to be cancelled or ended, and a server without memory. */
static bool
is_no_answer(int code)
{
	return ERRCODE_TO_CATEGORY(code) == ERRCODE_OPERATOR_INTERVENTION || code == ERRCODE_OUT_OF_MEMORY;
}

/* False: it failed.  An error takes away what the caller holds off (errfinish()); that is given back. */
static bool
attempt_once(Task task, void *subject, JsonPath *filter, Datum *result)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		interrupts_held = InterruptHoldoffCount;
	uint32		cancels_held = QueryCancelHoldoffCount;
	volatile bool done = false;

	PG_TRY();
	{
		*result = perform(task, subject, filter);
		done = true;
	}
	PG_CATCH();
	{
		if (is_no_answer(geterrcode()))
			PG_RE_THROW();
		InterruptHoldoffCount = interrupts_held;
		QueryCancelHoldoffCount = cancels_held;
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	return done;
}

/* The result of the task, 0 when it fails. */
static Datum
attempt(Task task, void *subject, JsonPath *filter)
{
	Datum		result = (Datum) 0;

	while (!attempt_once(task, subject, filter, &result))
	{
		result = (Datum) 0;

		/* a regular expression gives up for a cancellation, also for one that the caller holds off */
		if (QueryCancelHoldoffCount == 0 || !QueryCancelPending)
			break;
		QueryCancelPending = false;
	}
	return result;
}

/*
 * Strings are compared as UTF-8.  In other encodings the server looks up a conversion for that, for which it wants a transaction; the worker routes outside of one.
 */
static Datum
attempt_anywhere(Task task, void *subject, JsonPath *filter)
{
	bool		begin = !IsTransactionState() && GetDatabaseEncoding() != PG_UTF8 && GetDatabaseEncoding() != PG_SQL_ASCII;
	MemoryContext context = CurrentMemoryContext;
	Datum		result;

	if (begin)
		StartTransactionCommand();
	MemoryContextSwitchTo(context);
	result = attempt(task, subject, filter);
	if (begin)
		CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return result;
}

bool
outbox_filter_matches(JsonPath *filter, Jsonb *payload)
{
	return DatumGetBool(attempt_anywhere(is_predicate(filter) ? TASK_MATCH : TASK_EXISTS, payload, filter));
}

Jsonb *
outbox_filter_payload(char *text)
{
	return (Jsonb *) DatumGetPointer(attempt_anywhere(TASK_PARSE, text, NULL));
}

/* _filter_matches(filter jsonpath, payload jsonb) → boolean; what has no payload fulfils no filter. */
PG_FUNCTION_INFO_V1(outbox_filter_matches_sql);
Datum
outbox_filter_matches_sql(PG_FUNCTION_ARGS)
{
	MemoryContext context;
	MemoryContext old;
	bool		matches;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(true);
	if (PG_ARGISNULL(1))
		PG_RETURN_BOOL(false);
	context = AllocSetContextCreate(CurrentMemoryContext, "outbox filter", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	matches = outbox_filter_matches(PG_GETARG_JSONPATH_P(0), PG_GETARG_JSONB_P(1));
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	PG_RETURN_BOOL(matches);
}
