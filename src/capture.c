/*
 * Capture: a change of a row becomes an event.
 *
 * The function of the triggers that outbox.capture() puts on a table.  It runs after each changed row, so it sees what BEFORE triggers have made of it, as
 * whoever writes the table: that needs no right to enqueue, for whoever captured the table had it.  The row is turned into JSON by PostgreSQL's own to_jsonb(),
 * of a record made here:
 *
 *	{"op": "insert", "table": "public.orders", "new": {…}}
 *	{"op": "update", "table": "public.orders", "old": {…}, "new": {…}, "changed": ["status"]}		"old_key" too if the key has changed
 *	{"op": "delete", "table": "public.orders", "old": {…}}
 *	{"op": "truncate", "table": "public.orders"}
 *
 * The same row makes the same payload and the same key, whatever the writer's session is set to: time zone, date style and the like.
 *
 * No SPI, and nothing remembered beyond the statement: its lock on the table keeps columns and arguments as they are, and finding them costs less than the
 * append does.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "capture_arguments.h"
#include "catalog/indexing.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "enqueue.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "pgtime.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/datum.h"
#include "utils/float.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* Some columns of a table. */
typedef struct Columns
{
	int			n;
	AttrNumber *numbers;		/* in the table */
	TupleDesc	record;			/* of a record of them */
} Columns;

/* What a trigger captures, for the length of a statement. */
typedef struct Capture
{
	Oid			trigger;
	OutboxCaptureArguments arguments;
	char	   *table;			/* that was captured: of a partition its root; qualified and quoted */
	Columns		columns;
	Columns		key;
	bool		zoned;			/* some text of a column may depend on the time zone */
	FmgrInfo	to_jsonb;		/* of a record */
	FmgrInfo	key_array;		/* jsonb_build_array() of a key of several columns */
} Capture;

typedef enum Operation
{
	INSERTED,
	UPDATED,
	DELETED,
	TRUNCATED
} Operation;

static const char *const operation_names[] = {
	[INSERTED] = "insert",
	[UPDATED] = "update",
	[DELETED] = "delete",
	[TRUNCATED] = "truncate"
};

/* ---- what is captured ---- */

outbox_noreturn static void
refuse_trigger(const TriggerData *data, const char *detail) outbox_noreturn_suffix;

static void
refuse_trigger(const TriggerData *data, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("trigger \"%s\" of table \"%s\" cannot capture changes", data->tg_trigger->tgname, RelationGetRelationName(data->tg_relation)),
			 errdetail("%s", detail),
			 errhint("Call outbox.release() for the table, and then outbox.capture().")));
}

/* The table that was captured: where the trigger comes from, if it was inherited by a partition. */
static Oid
captured_table(const Trigger *trigger, Relation relation)
{
	Relation	triggers;
	Oid			next = trigger->tgoid;
	Oid			table = RelationGetRelid(relation);

	if (!trigger->tgisclone)
		return table;
	triggers = table_open(TriggerRelationId, AccessShareLock);
	while (OidIsValid(next))
	{
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(next));
		scan = systable_beginscan(triggers, TriggerOidIndexId, true, NULL, 1, &key);
		tuple = systable_getnext(scan);
		next = InvalidOid;
		if (HeapTupleIsValid(tuple))
		{
			table = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
			next = ((Form_pg_trigger) GETSTRUCT(tuple))->tgparentid;
		}
		systable_endscan(scan);
	}
	table_close(triggers, AccessShareLock);
	return table;
}

/* As SQL has it; NULL if there is no such table. */
static char *
name_of(Oid table)
{
	char	   *name = get_rel_name(table);
	char	   *schema = get_namespace_name(get_rel_namespace(table));

	return name == NULL || schema == NULL ? NULL : quote_qualified_identifier(schema, name);
}

/* Does the text of a value depend on the time zone?  Yes, if that is not known. */
static bool
is_zoned(Oid type)
{
	Oid			element;

	type = getBaseType(type);
	element = get_element_type(type);
	if (OidIsValid(element))
		return is_zoned(element);
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case FLOAT4OID:
		case FLOAT8OID:
		case NUMERICOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case CHAROID:
		case NAMEOID:
		case BYTEAOID:
		case UUIDOID:
		case JSONOID:
		case JSONBOID:
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
		case INTERVALOID:
		case INETOID:
		case CIDROID:
		case BITOID:
		case VARBITOID:
			return false;
		default:
			return get_typtype(type) != TYPTYPE_ENUM;
	}
}

/* Has PostgreSQL a value for it in the row?  (A virtual generated column, new in 18, has none.) */
static bool
has_value(Form_pg_attribute attribute)
{
	return !attribute->attisdropped && attribute->attgenerated != 'v';
}

static AttrNumber
column_number(const TriggerData *data, TupleDesc table, const char *name)
{
	for (int i = 0; i < table->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(table, i);

		if (has_value(attribute) && strcmp(NameStr(attribute->attname), name) == 0)
			return i + 1;
	}
	refuse_trigger(data, psprintf("Column \"%s\" does not exist, or is not stored.", name));
}

static void
set_record(Columns *columns, TupleDesc table)
{
	columns->record = CreateTemplateTupleDesc(columns->n);
	for (int i = 0; i < columns->n; i++)
		TupleDescCopyEntry(columns->record, i + 1, table, columns->numbers[i]);
	columns->record = BlessTupleDesc(columns->record);
}

static Columns
named_columns(const TriggerData *data, TupleDesc table, int n, char **names)
{
	Columns		columns = {.n = n, .numbers = palloc_array(AttrNumber, n + 1)};

	for (int i = 0; i < n; i++)
		columns.numbers[i] = column_number(data, table, names[i]);
	set_record(&columns, table);
	return columns;
}

static Columns
all_columns(TupleDesc table)
{
	Columns		columns = {.n = 0, .numbers = palloc_array(AttrNumber, table->natts + 1)};

	for (int i = 0; i < table->natts; i++)
	{
		if (has_value(TupleDescAttr(table, i)))
			columns.numbers[columns.n++] = i + 1;
	}
	set_record(&columns, table);
	return columns;
}

/* A function that asks for the types of its arguments gets them from an expression: this one, of nulls. */
static void
set_function(FmgrInfo *function, Oid oid, int n, const Oid *types)
{
	List	   *arguments = NIL;

	for (int i = 0; i < n; i++)
		arguments = lappend(arguments, makeNullConst(types[i], -1, InvalidOid));
	fmgr_info_cxt(oid, function, CurrentMemoryContext);
	fmgr_info_set_expr((Node *) makeFuncExpr(oid, JSONBOID, arguments, InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL), function);
}

static void
set_row(Capture *capture, const TriggerData *data)
{
	TupleDesc	table = RelationGetDescr(data->tg_relation);
	const OutboxCaptureArguments *arguments = &capture->arguments;

	if (arguments->key_dropped)
		refuse_trigger(data, "A column of the key has been dropped.");
	if (arguments->n_keys > FUNC_MAX_ARGS)
		refuse_trigger(data, "The key has too many columns.");
	capture->key = named_columns(data, table, arguments->n_keys, arguments->keys);
	capture->columns = arguments->all ? all_columns(table) : named_columns(data, table, arguments->n_columns, arguments->columns);

	for (int i = 0; i < capture->columns.n; i++)
		capture->zoned |= is_zoned(TupleDescAttr(capture->columns.record, i)->atttypid);
	for (int i = 0; i < capture->key.n; i++)
		capture->zoned |= is_zoned(TupleDescAttr(capture->key.record, i)->atttypid);

	if (capture->key.n > 1)
	{
		Oid			types[FUNC_MAX_ARGS];

		for (int i = 0; i < capture->key.n; i++)
			types[i] = TupleDescAttr(capture->key.record, i)->atttypid;
		set_function(&capture->key_array, F_JSONB_BUILD_ARRAY_ANY, capture->key.n, types);
	}
}

/* Copies the arguments: the relation's own may be rebuilt in the course of a statement. */
static void
set_arguments(Capture *capture, const TriggerData *data)
{
	const Trigger *trigger = data->tg_trigger;
	char	  **copy = palloc_array(char *, trigger->tgnargs + 1);

	for (int i = 0; i < trigger->tgnargs; i++)
		copy[i] = pstrdup(trigger->tgargs[i]);
	if (!outbox_capture_arguments_parse(trigger->tgnargs, copy, &capture->arguments))
		refuse_trigger(data, "Its arguments are not what outbox.capture() writes.");
}

static Capture *
new_capture(const TriggerData *data)
{
	static const Oid record = RECORDOID;
	Capture    *capture = palloc0(sizeof(Capture));
	Oid			table = captured_table(data->tg_trigger, data->tg_relation);

	capture->trigger = data->tg_trigger->tgoid;
	capture->table = name_of(table);
	if (capture->table == NULL)
		refuse_trigger(data, "The table that was captured is gone.");
	set_arguments(capture, data);
	if (capture->arguments.row != (TRIGGER_FIRED_FOR_ROW(data->tg_event) != 0))
		refuse_trigger(data, "Its arguments are not what outbox.capture() writes.");
	if (capture->arguments.row)
		set_row(capture, data);
	set_function(&capture->to_jsonb, F_TO_JSONB, 1, &record);
	return capture;
}

/* What this trigger captures; found once for each statement. */
static Capture *
capture_of(FmgrInfo *function, const TriggerData *data)
{
	Capture    *capture = function->fn_extra;

	if (capture == NULL || capture->trigger != data->tg_trigger->tgoid)
	{
		MemoryContext before = MemoryContextSwitchTo(function->fn_mcxt);

		capture = new_capture(data);
		MemoryContextSwitchTo(before);
		function->fn_extra = capture;
	}
	return capture;
}

/* ---- one form for all sessions ---- */

static void
set_locally(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

static bool
is_utc(void)
{
	const char *zone = pg_get_timezone_name(session_timezone);

	return strcmp(zone, "UTC") == 0 || strcmp(zone, "Etc/UTC") == 0 || strcmp(zone, "GMT") == 0;
}

/*
 * Sets what the text of values depends on, where the session has it otherwise.  What it returns, if not 0, is to be undone with AtEOXact_GUC(true, …); an error
 * undoes it too.
 */
static int
set_forms(bool zoned)
{
	bool		other_zone = zoned && !is_utc();
	int			level;

	if (DateStyle == USE_ISO_DATES && IntervalStyle == INTSTYLE_POSTGRES && bytea_output == BYTEA_OUTPUT_HEX && extra_float_digits >= 1 && !other_zone)
		return 0;

	level = NewGUCNestLevel();
	if (DateStyle != USE_ISO_DATES)
		set_locally("datestyle", "ISO");
	if (IntervalStyle != INTSTYLE_POSTGRES)
		set_locally("intervalstyle", "postgres");
	if (bytea_output != BYTEA_OUTPUT_HEX)
		set_locally("bytea_output", "hex");
	if (extra_float_digits < 1)
		set_locally("extra_float_digits", "1");
	if (other_zone)
		set_locally("timezone", "UTC");
	return level;
}

/* ---- the key ---- */

/* One column: its text, and none for NULL.  Several: a JSON array.  An empty text, which no key may be, becomes two quotation marks. */
static text *
key_of(Capture *capture, TupleTableSlot *row)
{
	const Columns *key = &capture->key;
	bool		isnull;

	if (key->n == 0)
		return NULL;
	if (key->n == 1)
	{
		Datum		value = slot_getattr(row, key->numbers[0], &isnull);
		Oid			output;
		bool		is_varlena;
		char	   *result;

		if (isnull)
			return NULL;
		getTypeOutputInfo(TupleDescAttr(key->record, 0)->atttypid, &output, &is_varlena);
		result = OidOutputFunctionCall(output, value);
		return cstring_to_text(*result == '\0' ? "\"\"" : result);
	}
	else
	{
		LOCAL_FCINFO(call, FUNC_MAX_ARGS);
		Jsonb	   *array;

		InitFunctionCallInfoData(*call, &capture->key_array, key->n, InvalidOid, NULL, NULL);
		for (int i = 0; i < key->n; i++)
			call->args[i].value = slot_getattr(row, key->numbers[i], &call->args[i].isnull);
		array = DatumGetJsonbP(FunctionCallInvoke(call));
		return cstring_to_text(JsonbToCString(NULL, &array->root, VARSIZE(array)));
	}
}

/* ---- what has changed ---- */

/* The same bytes?  A value out of line that was not touched is not fetched for it. */
static bool
is_same(TupleTableSlot *old, TupleTableSlot *new, AttrNumber number)
{
	Form_pg_attribute attribute = TupleDescAttr(new->tts_tupleDescriptor, number - 1);
	bool		old_isnull;
	bool		new_isnull;
	Datum		before = slot_getattr(old, number, &old_isnull);
	Datum		after = slot_getattr(new, number, &new_isnull);

	if (old_isnull || new_isnull)
		return old_isnull && new_isnull;
	if (attribute->attlen == -1)
	{
		struct varlena *a = (struct varlena *) DatumGetPointer(before);
		struct varlena *b = (struct varlena *) DatumGetPointer(after);

		if (VARATT_IS_EXTERNAL_ONDISK(a) && VARATT_IS_EXTERNAL_ONDISK(b) && memcmp(a, b, VARSIZE_EXTERNAL(a)) == 0)
			return true;
	}
	return datum_image_eq(before, after, attribute->attbyval, attribute->attlen);
}

static bool
is_any_changed(const Columns *columns, TupleTableSlot *old, TupleTableSlot *new)
{
	for (int i = 0; i < columns->n; i++)
	{
		if (!is_same(old, new, columns->numbers[i]))
			return true;
	}
	return false;
}

/* The names of the captured columns that have changed, as text[]. */
static Datum
changed_names(const Columns *columns, TupleTableSlot *old, TupleTableSlot *new)
{
	Datum	   *names = palloc_array(Datum, columns->n + 1);
	int			n = 0;

	for (int i = 0; i < columns->n; i++)
	{
		if (!is_same(old, new, columns->numbers[i]))
			names[n++] = CStringGetTextDatum(NameStr(TupleDescAttr(columns->record, i)->attname));
	}
	return PointerGetDatum(construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/* ---- the payload ---- */

static Datum
record_of(const Columns *columns, TupleTableSlot *row)
{
	Datum	   *values = palloc_array(Datum, columns->n + 1);
	bool	   *nulls = palloc_array(bool, columns->n + 1);

	for (int i = 0; i < columns->n; i++)
		values[i] = slot_getattr(row, columns->numbers[i], &nulls[i]);
	return HeapTupleGetDatum(heap_form_tuple(columns->record, values, nulls));
}

#define MEMBERS 6

/* The members of a payload, in the making. */
typedef struct Payload
{
	int			n;
	const char *names[MEMBERS];
	Oid			types[MEMBERS];
	Datum		values[MEMBERS];
} Payload;

static void
add(Payload *payload, const char *name, Oid type, Datum value)
{
	Assert(payload->n < MEMBERS);
	payload->names[payload->n] = name;
	payload->types[payload->n] = type;
	payload->values[payload->n] = value;
	payload->n++;
}

static Jsonb *
payload_json(FmgrInfo *to_jsonb, Payload *payload)
{
	TupleDesc	record = CreateTemplateTupleDesc(payload->n);
	bool		nulls[MEMBERS] = {0};

	for (int i = 0; i < payload->n; i++)
		TupleDescInitEntry(record, i + 1, payload->names[i], payload->types[i], -1, 0);
	record = BlessTupleDesc(record);
	return DatumGetJsonbP(FunctionCall1(to_jsonb, HeapTupleGetDatum(heap_form_tuple(record, payload->values, nulls))));
}

/* ---- the trigger ---- */

/* The type of the event: a last word "*" stands for the operation. */
static text *
type_of(const char *type, const char *operation)
{
	size_t		size = strlen(type);

	if (size > 0 && type[size - 1] == '*' && (size == 1 || type[size - 2] == '.'))
		return cstring_to_text(psprintf("%.*s%s", (int) size - 1, type, operation));
	return cstring_to_text(type);
}

static void
add_old_key(Payload *payload, const text *old, const text *new)
{
	if (old != NULL && (new == NULL || VARSIZE(old) != VARSIZE(new) || memcmp(old, new, VARSIZE(old)) != 0))
		add(payload, "old_key", TEXTOID, PointerGetDatum(old));
}

static void
record_change(Capture *capture, Operation operation, TupleTableSlot *old, TupleTableSlot *new)
{
	Payload		payload = {0};
	TupleTableSlot *row = new != NULL ? new : old;
	bool		rekeyed = operation == UPDATED && is_any_changed(&capture->key, old, new);
	text	   *key = NULL;
	Jsonb	   *json;
	int			forms;

	if (operation == UPDATED && !rekeyed && !is_any_changed(&capture->columns, old, new))
		return;

	forms = set_forms(capture->zoned);
	if (row != NULL)
		key = key_of(capture, row);
	add(&payload, "op", TEXTOID, CStringGetTextDatum(operation_names[operation]));
	add(&payload, "table", TEXTOID, CStringGetTextDatum(capture->table));
	if (old != NULL)
		add(&payload, "old", RECORDOID, record_of(&capture->columns, old));
	if (new != NULL)
		add(&payload, "new", RECORDOID, record_of(&capture->columns, new));
	if (operation == UPDATED)
		add(&payload, "changed", TEXTARRAYOID, changed_names(&capture->columns, old, new));
	if (rekeyed)
		add_old_key(&payload, key_of(capture, old), key);
	json = payload_json(&capture->to_jsonb, &payload);
	if (forms != 0)
		AtEOXact_GUC(true, forms);

	outbox_enqueue_change(capture->table, type_of(capture->arguments.type, operation_names[operation]), json, key);
}

static void
name_table(void *arg)
{
	errcontext("capture of table %s", ((Capture *) arg)->table);
}

/* _capture() → trigger: after each row, and after TRUNCATE. */
PG_FUNCTION_INFO_V1(outbox_captured_change);
Datum
outbox_captured_change(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	ErrorContextCallback context = {.previous = error_context_stack, .callback = name_table};
	Capture    *capture;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(data->tg_event) ||
		(TRIGGER_FIRED_FOR_ROW(data->tg_event) != 0) == (TRIGGER_FIRED_BY_TRUNCATE(data->tg_event) != 0))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox._capture() must be called AFTER INSERT, UPDATE or DELETE of a row, or AFTER TRUNCATE"),
				 errdetail("It was called in another way."),
				 errhint("Have the triggers made by outbox.capture().")));

	capture = capture_of(fcinfo->flinfo, data);
	context.arg = capture;
	error_context_stack = &context;
	if (TRIGGER_FIRED_BY_INSERT(data->tg_event))
		record_change(capture, INSERTED, NULL, data->tg_trigslot);
	else if (TRIGGER_FIRED_BY_UPDATE(data->tg_event))
		record_change(capture, UPDATED, data->tg_trigslot, data->tg_newslot);
	else if (TRIGGER_FIRED_BY_DELETE(data->tg_event))
		record_change(capture, DELETED, data->tg_trigslot, NULL);
	else
		record_change(capture, TRUNCATED, NULL, NULL);
	error_context_stack = context.previous;
	PG_RETURN_POINTER(NULL);
}

/* _check_capture_type(type text) → void: refuses what no type of a capture can be (22023). */
PG_FUNCTION_INFO_V1(outbox_check_capture_type);
Datum
outbox_check_capture_type(PG_FUNCTION_ARGS)
{
	outbox_enqueue_check_type(type_of(text_to_cstring(PG_GETARG_TEXT_PP(0)), operation_names[TRUNCATED]));
	PG_RETURN_VOID();
}
