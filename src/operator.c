/*
 * What the SQL functions of operators and subscribers need from C: the state in shared memory, positions in the log, patterns, and who may do what.
 *
 * Glue: arguments in, one call, a row out.  Most functions are private ("_"), for the public ones in the install script.  The public ones that managers call are
 * outbox_manage(): it decides, with the caller's rights, what the private one behind it may do with the owner's.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "bell.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "copies.h"
#include "enqueue.h"
#include "event_id.h"
#include "event_log.h"
#include "fmgr.h"
#include "funcapi.h"
#include "held.h"
#include "miscadmin.h"
#include "pattern.h"
#include "snapshot.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

/* ---- this installation ---- */

/*
 * _arm(armed boolean): when this transaction commits, a delivery worker is wanted here, or not any more.  The setting that makes it last is
 * changed by start() and stop().  Such a transaction cannot be prepared (0A000).  On a restored copy that is about to be disarmed, arming would be undone.
 */
PG_FUNCTION_INFO_V1(outbox_arm);
Datum
outbox_arm(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				errmsg("armed must not be null"),
				errdetail("It says whether this database is to deliver."),
				errhint("Call outbox.start() or outbox.stop()."));
	if (PG_GETARG_BOOL(0) && outbox_copies_quiet())
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("delivery cannot be started yet"),
				errdetail("This server was restored from a copy, and outbox has not yet stopped delivery in all of its databases."),
				errhint("Try again in a moment. It needs outbox.enabled = on and a free background worker slot."));
	outbox_bell_note_armed(outbox_bell_database(outbox_catalog_required()->extension), PG_GETARG_BOOL(0));
	PG_RETURN_VOID();
}

/* _changed(), trigger: the worker reloads what this table holds.  What the worker itself wrote it knows already. */
PG_FUNCTION_INFO_V1(outbox_changed);
Datum
outbox_changed(PG_FUNCTION_ARGS)
{
	const OutboxCatalog *catalog;
	OutboxDatabase *database;
	bool		deliveries;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				errmsg("outbox._changed() must be called as a trigger"));

	catalog = outbox_catalog();
	if (catalog != NULL)
	{
		database = outbox_bell_database(catalog->extension);
		deliveries = strcmp(RelationGetRelationName(((TriggerData *) fcinfo->context)->tg_relation), "delivery") == 0;
		if (database->worker_pid != MyProcPid)
			outbox_bell_note(database, deliveries ? OUTBOX_RING_DELIVERIES : OUTBOX_RING_SUBSCRIPTIONS);
	}
	return PointerGetDatum(NULL);	/* an AFTER trigger: ignored */
}

/* _hold_log() → void: no segment is emptied from here to the end of the transaction, or subtransaction (held.h). */
PG_FUNCTION_INFO_V1(outbox_hold_log);
Datum
outbox_hold_log(PG_FUNCTION_ARGS)
{
	const OutboxCatalog catalog = *outbox_catalog_required();	/* a lock may bring news of it */

	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
		(void) outbox_held_lock(catalog.segments[i], AccessShareLock, true);
	PG_RETURN_VOID();
}

/*
 * _position_now() → (snapshot, next, clock, epoch): what has committed until now, in every isolation level.  Assigns an xid first, so that the events that
 * this transaction itself enqueues lie behind the position.
 */
PG_FUNCTION_INFO_V1(outbox_position_now);
Datum
outbox_position_now(PG_FUNCTION_ARGS)
{
	const OutboxCatalog *catalog = outbox_catalog_required();
	int64		epoch = catalog->epoch;
	OutboxDatabase *database = outbox_bell_database(catalog->extension);
	OutboxSnapshot *snapshot;
	TupleDesc	descriptor;
	Datum		values[4];
	bool		nulls[4] = {false};

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	PreventCommandIfReadOnly("outbox.subscribe()");
	PreventCommandIfParallelMode("outbox.subscribe()");
	(void) GetTopTransactionId();
	outbox_log_floor(database);
	snapshot = outbox_snapshot_take(GetLatestSnapshot(), &database->clock, true);

	values[0] = outbox_snapshot_to_datum(snapshot);
	values[1] = FullTransactionIdGetDatum(FullTransactionIdFromU64(snapshot->next));
	values[2] = Int64GetDatum((int64) snapshot->clock);
	values[3] = Int64GetDatum(epoch);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}

/*
 * _acting_role() → oid: the role of the session, after SET ROLE, also inside SECURITY DEFINER functions; for the record.  In a security-restricted operation (ANALYZE or CREATE
 * INDEX on somebody's expression index) that role did not choose what runs, so nobody acts there.
 */
PG_FUNCTION_INFO_V1(outbox_acting_role);
Datum
outbox_acting_role(PG_FUNCTION_ARGS)
{
	if (InSecurityRestrictedOperation())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot operate outbox within a security-restricted operation"),
				 errdetail("Nobody chose to do this: it is part of the maintenance of a table or view."),
				 errhint("Call outbox's functions in a statement of their own.")));
	PG_RETURN_OID(GetOuterUserId());
}

/* ---- what managers call ---- */

/*
 * The function behind this one: the same name with "_" before it, these arguments, and one more, boolean.
 *
 * NB: its EXECUTE privilege is nobody's but the owner's, and is not asked for here: this function's own was.
 */
static FmgrInfo *
function_behind(FmgrInfo *front, const Oid *arguments, int n)
{
	char	   *name = psprintf("_%s", get_func_name(front->fn_oid));
	Oid			types[FUNC_MAX_ARGS];
	Oid			behind;

	Assert(n < FUNC_MAX_ARGS);
	memcpy(types, arguments, n * sizeof(Oid));
	types[n] = BOOLOID;
	behind = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(name),
							 PointerGetDatum(buildoidvector(types, n + 1)), ObjectIdGetDatum(get_func_namespace(front->fn_oid)));
	if (!OidIsValid(behind))
		elog(ERROR, "function %s is missing", name);
	front->fn_extra = MemoryContextAllocZero(front->fn_mcxt, sizeof(FmgrInfo));
	fmgr_info_cxt(behind, front->fn_extra, front->fn_mcxt);
	return front->fn_extra;
}

/* An operator is who may call outbox.start(): asked of the current user, who is a SECURITY DEFINER function's owner inside it. */
static bool
caller_is_operator(Oid schema)
{
	Oid			argument = BOOLOID;
	Oid			start = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum("start"),
										PointerGetDatum(buildoidvector(&argument, 1)), ObjectIdGetDatum(schema));

	return OidIsValid(start) &&
		DatumGetBool(DirectFunctionCall3(has_function_privilege_id_id, ObjectIdGetDatum(GetUserId()),
										 ObjectIdGetDatum(start), CStringGetTextDatum("EXECUTE")));
}

/* The statement may hold a secret, and so may the context, when it was executed as a string. */
static void
hide_statement(void *arg)
{
	errhidestmt(true);
	errhidecontext(true);
}

/* unsubscribe(), pause(), resume(), ping(): the arguments go on as they are, with the answer to "is the caller an operator?" */
PG_FUNCTION_INFO_V1(outbox_manage);
Datum
outbox_manage(PG_FUNCTION_ARGS)
{
	LOCAL_FCINFO(behind, FUNC_MAX_ARGS);
	ErrorContextCallback context = {.previous = error_context_stack, .callback = hide_statement};
	FmgrInfo   *function = fcinfo->flinfo->fn_extra;
	Datum		result;

	error_context_stack = &context;
	if (function == NULL)
	{
		Oid		   *types;
		int			n;

		(void) get_func_signature(fcinfo->flinfo->fn_oid, &types, &n);
		function = function_behind(fcinfo->flinfo, types, n);
	}
	InitFunctionCallInfoData(*behind, function, PG_NARGS() + 1, PG_GET_COLLATION(), NULL, NULL);
	memcpy(behind->args, fcinfo->args, PG_NARGS() * sizeof(NullableDatum));
	behind->args[PG_NARGS()].value = BoolGetDatum(caller_is_operator(get_func_namespace(fcinfo->flinfo->fn_oid)));
	behind->args[PG_NARGS()].isnull = false;
	result = FunctionCallInvoke(behind);
	fcinfo->isnull = behind->isnull;
	error_context_stack = context.previous;
	return result;
}

/* The arguments that are not NULL, as one record with their names. */
static Datum
given_arguments(FunctionCallInfo fcinfo)
{
	HeapTuple	function = SearchSysCache1(PROCOID, ObjectIdGetDatum(fcinfo->flinfo->fn_oid));
	TupleDesc	descriptor;
	Datum		values[FUNC_MAX_ARGS];
	bool		nulls[FUNC_MAX_ARGS] = {false};
	Oid		   *types;
	char	  **names;
	char	   *modes;
	AttrNumber	n = 0;

	if (!HeapTupleIsValid(function))
		elog(ERROR, "cache lookup failed for function %u", fcinfo->flinfo->fn_oid);
	(void) get_func_arg_info(function, &types, &names, &modes);
	ReleaseSysCache(function);
	for (int i = 0; i < PG_NARGS(); i++)
		n += !PG_ARGISNULL(i);
	descriptor = CreateTemplateTupleDesc(n);
	n = 0;
	for (int i = 0; i < PG_NARGS(); i++)
	{
		if (PG_ARGISNULL(i))
			continue;
		TupleDescInitEntry(descriptor, n + 1, names[i], types[i], -1, 0);
		values[n++] = PG_GETARG_DATUM(i);
	}
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls));
}

/* subscribe(), alter_subscription(): so many options that they go on as one record, of those that were given. */
PG_FUNCTION_INFO_V1(outbox_manage_options);
Datum
outbox_manage_options(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {RECORDOID};
	LOCAL_FCINFO(behind, 2);
	ErrorContextCallback context = {.previous = error_context_stack, .callback = hide_statement};
	FmgrInfo   *function = fcinfo->flinfo->fn_extra;
	Datum		result;

	error_context_stack = &context;
	if (function == NULL)
		function = function_behind(fcinfo->flinfo, types, lengthof(types));
	InitFunctionCallInfoData(*behind, function, 2, PG_GET_COLLATION(), NULL, NULL);
	behind->args[0].value = given_arguments(fcinfo);
	behind->args[0].isnull = false;
	behind->args[1].value = BoolGetDatum(caller_is_operator(get_func_namespace(fcinfo->flinfo->fn_oid)));
	behind->args[1].isnull = false;
	result = FunctionCallInvoke(behind);
	fcinfo->isnull = behind->isnull;
	error_context_stack = context.previous;
	return result;
}

/* _event_time(id uuid) → timestamptz: when the event was enqueued, to the millisecond. */
PG_FUNCTION_INFO_V1(outbox_event_time);
Datum
outbox_event_time(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(outbox_event_id_time(PG_GETARG_UUID_P(0)));
}

/* ---- types and patterns ---- */

/* The elements of a text[]; NULLs are not left out: *nulls says which they are. */
static int
text_elements(ArrayType *array, Datum **elements, bool **nulls)
{
	int			n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, elements, nulls, &n);
	return n;
}

/* _type_matches(types text[], type text) → boolean: does one of these patterns match the type? */
PG_FUNCTION_INFO_V1(outbox_type_matches);
Datum
outbox_type_matches(PG_FUNCTION_ARGS)
{
	char	   *type = text_to_cstring(PG_GETARG_TEXT_PP(1));
	Datum	   *patterns;
	bool	   *nulls;
	int			n = text_elements(PG_GETARG_ARRAYTYPE_P(0), &patterns, &nulls);

	for (int i = 0; i < n; i++)
	{
		if (!nulls[i] && outbox_pattern_matches(TextDatumGetCString(patterns[i]), type))
			PG_RETURN_BOOL(true);
	}
	PG_RETURN_BOOL(false);
}

static void
check_pattern(const char *pattern)
{
	const char *problem = outbox_pattern_problem(pattern, strlen(pattern));

	if (problem != NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid event type pattern \"%s\"", pattern),
				errdetail("%s", problem),
				errhint("Write words separated by dots, such as order.paid, order.* (one more word) or order.** (any number of words)."));
}

/* _check_type(type text): raises 22023 unless somebody may enqueue events of this type. */
PG_FUNCTION_INFO_V1(outbox_check_type);
Datum
outbox_check_type(PG_FUNCTION_ARGS)
{
	outbox_enqueue_check_type(PG_GETARG_TEXT_PP(0));
	PG_RETURN_VOID();
}

/* _check_types(types text[]): raises 22023 unless it is a non-empty, one-dimensional array of valid patterns. */
PG_FUNCTION_INFO_V1(outbox_check_types);
Datum
outbox_check_types(PG_FUNCTION_ARGS)
{
	ArrayType  *types = PG_ARGISNULL(0) ? NULL : PG_GETARG_ARRAYTYPE_P(0);
	Datum	   *patterns;
	bool	   *nulls;
	int			n;

	if (types == NULL || ARR_NDIM(types) != 1)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("types must be a non-empty array of patterns"),
				errdetail(types == NULL ? "It is NULL." : ARR_NDIM(types) == 0 ? "It is empty." : "It has more than one dimension."),
				errhint("The pattern ** matches every type."));

	n = text_elements(types, &patterns, &nulls);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("types must not contain nulls"),
					errdetail("Element %d is NULL.", i + 1),
					errhint("The pattern ** matches every type."));
		check_pattern(TextDatumGetCString(patterns[i]));
	}
	PG_RETURN_VOID();
}

/* ---- state in shared memory ---- */

/* A row under construction: columns are appended in order. */
typedef struct Row
{
	int			n;
	Datum		values[17];
	bool		nulls[17];
} Row;

static void
add(Row *row, Datum value, bool isnull)
{
	Assert(row->n < lengthof(row->values));
	row->values[row->n] = value;
	row->nulls[row->n] = isnull;
	row->n++;
}

/* Zero means: not yet. */
static void
add_time(Row *row, TimestampTz at)
{
	add(row, TimestampTzGetDatum(at), at == 0);
}

/* The empty string means: none. */
static void
add_text(Row *row, const char *string)
{
	add(row, string[0] == '\0' ? (Datum) 0 : CStringGetTextDatum(string), string[0] == '\0');
}

static void
add_pid(Row *row, pid_t pid)
{
	add(row, Int32GetDatum((int32) pid), pid == 0);
}

/* _runtime() → one row for each subscription of this database that the worker has said something about. */
PG_FUNCTION_INFO_V1(outbox_runtime);
Datum
outbox_runtime(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	OutboxDatabase *database = outbox_bell_find(MyDatabaseId);
	OutboxLaneCopy *lanes;
	bool		running;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	if (database == NULL)
		return (Datum) 0;

	/* a breaker is a worker's: none is open where there is none */
	running = database->worker_pid != 0;
	lanes = outbox_bell_copy_lanes(database, &n);
	for (int i = 0; i < n; i++)
	{
		OutboxLaneStatus *status = &lanes[i].status;
		Row			row = {0};

		add(&row, Int32GetDatum(lanes[i].subscription), false);
		add(&row, Int32GetDatum(status->in_flight), false);
		add(&row, Int32GetDatum(status->exceptions), false);
		add(&row, Int32GetDatum(status->blocked_keys), false);
		add(&row, BoolGetDatum(status->at_head), false);
		add(&row, Int64GetDatum((int64) status->offset), false);
		add_time(&row, status->oldest_at);
		add_time(&row, status->last_success_at);
		add_time(&row, status->last_error_at);
		add_time(&row, running ? status->breaker_open_until : 0);
		add_time(&row, running ? status->next_probe_at : 0);
		add_text(&row, status->last_error);
		tuplestore_putvalues(result->setResult, result->setDesc, row.values, row.nulls);
	}
	return (Datum) 0;
}

/* Also says why there is no lister, if that is so: without one no database of a server that has just started gets a worker. */
static pid_t
launcher_pid(char *trouble, Size size)
{
	OutboxLauncher *launcher = outbox_bell_launcher();
	pid_t		pid;

	if (launcher == NULL)
		return 0;
	LWLockAcquire(&launcher->lock, LW_SHARED);
	pid = launcher->pid;
	strlcpy(trouble, launcher->trouble, size);
	LWLockRelease(&launcher->lock);
	return pid;
}

static void
add_status(Row *row, const OutboxWorkerStatus *status)
{
	add_time(row, status->started_at);
	add_time(row, status->turn_at);
	add_time(row, status->tick_at);
	add_time(row, status->maintained_at);
	add(row, Int64GetDatum((int64) status->tick), false);
	add(row, Int64GetDatum((int64) status->offset), false);
	add(row, Int64GetDatum((int64) status->delivered), false);
	add(row, Int64GetDatum((int64) status->failed), false);
	add(row, Int32GetDatum(status->in_flight), false);
	add_text(row, status->error);
	add_time(row, status->error_at);
}

/* _worker() → one row: what launcher and delivery worker of this database say of themselves. */
PG_FUNCTION_INFO_V1(outbox_worker_status);
Datum
outbox_worker_status(PG_FUNCTION_ARGS)
{
	OutboxDatabase *database = outbox_bell_find(MyDatabaseId);
	OutboxWorkerStatus status = {0};
	char		trouble[sizeof(database->trouble)] = "";
	char		listers_trouble[sizeof(database->trouble)] = "";
	pid_t		worker_pid = 0;
	bool		wanted = false;
	TupleDesc	descriptor;
	Row			row = {0};

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	if (database != NULL)
	{
		LWLockAcquire(&database->lock, LW_SHARED);
		status = database->status;
		strlcpy(trouble, database->trouble, sizeof(trouble));
		worker_pid = database->worker_pid;
		wanted = database->wanted;
		LWLockRelease(&database->lock);
	}

	add(&row, BoolGetDatum(outbox_bell_ready()), false);
	add(&row, CStringGetTextDatum(OUTBOX_VERSION), false);
	add_pid(&row, launcher_pid(listers_trouble, sizeof(listers_trouble)));
	add_pid(&row, worker_pid);
	add(&row, BoolGetDatum(wanted), false);
	/* who has a worker does not mind that there is no lister */
	add_text(&row, trouble[0] != '\0' || worker_pid != 0 ? trouble : listers_trouble);
	add_status(&row, &status);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), row.values, row.nulls)));
}
