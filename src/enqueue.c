/*
 * Enqueue: from SQL arguments to rows of the log.
 *
 * Everything an event must be is checked here, once, before anything is written: what passes can be matched, ordered and sent.  Runs
 * in the caller's transaction with the caller's rights; EXECUTE on these functions is the right to enqueue.  What a plain INSERT would
 * have been refused (read-only transactions, parallel workers, standbys) is refused here too.
 *
 * Must never raise because of a bad trace context: tracing is not worth a business transaction.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "bell.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "dedup.h"
#include "enqueue.h"
#include "event_log.h"
#include "executor/spi.h"
#include "fault.h"
#include "field.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pattern.h"
#include "schedule.h"
#include "settings.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#define MAX_KEY		1024
#define MAX_TENANT	128
#define MAX_HEADERS (16 * 1024)
#define MAX_DEDUP_KEY 255		/* characters */
#define MAX_DELAY	(INT64CONST(3653) * USECS_PER_DAY)	/* ten years */

/* What the caller gave; NULL members were not given. */
typedef struct Arguments
{
	text	   *type;
	Jsonb	   *payload;
	bytea	   *body;
	text	   *content_type;
	text	   *key;
	Jsonb	   *headers;
	TimestampTz deliver_at;		/* 0: at once */
	text	   *dedup_key;
	text	   *tenant;
	const char *table;			/* whose change it is, if that was captured: for errors */
} Arguments;

/* ---- checks ---- */

static void
check_caller(const char *function)
{
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
	if (!outbox_bell_ready())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("outbox must be loaded via \"shared_preload_libraries\""),
				 errdetail("Without it nobody would deliver the event."),
				 errhint("Add outbox to shared_preload_libraries and restart the server.")));
}

static void
check_given(const void *value, const char *name)
{
	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s of an event must not be null", name),
				 errdetail("Every event has a type and a payload, or a body with its content_type."),
				 errhint(strcmp(name, "payload") == 0 ? "For an event without data, use 'null' or '{}'." : "Give one.")));
}

static void
check_size(const char *problem, Size size, Size limit, const char *hint)
{
	if (size > limit)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s", problem),
				 errdetail("It has %zu bytes, of at most %zu.", size, limit),
				 errhint("%s", hint)));
}

static void
check_not_empty(const text *value, const char *name, const char *hint)
{
	if (VARSIZE_ANY_EXHDR(value) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of an event must not be empty", name),
				 errdetail("An empty string is not the same as none."),
				 errhint("%s", hint)));
}

static void
check_type(const text *type, bool reserved)
{
	const char *name = VARDATA_ANY(type);
	int			size = VARSIZE_ANY_EXHDR(type);
	const char *problem = outbox_type_problem(name, size);
	static const char first[] = "outbox";
	int			length = strlen(first);

	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid event type"),
				 errdetail("%s", problem),
				 errhint("Write words of printable characters, separated by dots, such as order.paid; at most 255 bytes.")));
	if (!reserved && size >= length && memcmp(name, first, length) == 0 && (size == length || name[length] == '.'))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("event type \"%.*s\" is reserved", size, name),
				 errdetail("Types whose first word is \"%s\" belong to the extension.", first),
				 errhint("Choose another first word.")));
}

/*
 * What is sent is the text of a payload.  A number may be far longer there than in jsonb, where an exponent is a few bytes; in a small jsonb there is no room for one that
 * matters.
 */
static Size
body_size(const Arguments *arguments)
{
	const Size	small = 256;
	Jsonb	   *payload = arguments->payload;
	char	   *text;
	Size		size;

	if (payload == NULL)
		return VARSIZE_ANY_EXHDR(arguments->body);
	size = VARSIZE(payload) - VARHDRSZ;
	if (size <= small || size > (Size) outbox_max_payload * 1024)
		return size;
	text = JsonbToCString(NULL, &payload->root, size);
	size = strlen(text);
	pfree(text);
	return size;
}

static void
check_body(const Arguments *arguments)
{
	Size		size = body_size(arguments);

	if (size > (Size) outbox_max_payload * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 arguments->table == NULL ? errmsg("payload of an event is too large") :
				 errmsg("change of captured table %s is too large for an event", arguments->table),
				 errdetail("It has %zu bytes, of at most %d kB.", size, outbox_max_payload),
				 arguments->table == NULL ? errhint("Store large data elsewhere and send a reference, or increase outbox.max_payload.") :
				 errhint("Capture the table without its large columns, or increase outbox.max_payload.")));
	if (arguments->content_type != NULL &&
		(VARSIZE_ANY_EXHDR(arguments->content_type) == 0 ||
		 !outbox_field_value_valid(VARDATA_ANY(arguments->content_type), VARSIZE_ANY_EXHDR(arguments->content_type))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("content_type of an event is not a valid HTTP field value"),
				 errdetail("It is empty, or contains a control character, or a space at its beginning or end."),
				 errhint("Give a media type such as application/pdf.")));
}

static void
check_tenant(const text *tenant)
{
	check_not_empty(tenant, "tenant", "Leave it null for an event that belongs to no tenant.");
	check_size("tenant of an event is too long", VARSIZE_ANY_EXHDR(tenant), MAX_TENANT, "Use a short identifier of the tenant.");
}

static void
check_key(const text *key, const char *table)
{
	if (table != NULL && VARSIZE_ANY_EXHDR(key) > MAX_KEY)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("key of a change of captured table %s is too long for an event", table),
				 errdetail("It has %zu bytes, of at most %d.", (Size) VARSIZE_ANY_EXHDR(key), MAX_KEY),
				 errhint("Capture the table with other key_columns.")));
	check_not_empty(key, "key", "Leave it null for an event that is not ordered.");
	check_size("key of an event is too long", VARSIZE_ANY_EXHDR(key), MAX_KEY, "Use a short identifier, or a hash, of what the event is about.");
}

static void
check_dedup_key(const text *dedup_key)
{
	int			characters = pg_mbstrlen_with_len(VARDATA_ANY(dedup_key), VARSIZE_ANY_EXHDR(dedup_key));

	check_not_empty(dedup_key, "dedup_key", "Leave it null for an event that is never a duplicate.");
	if (characters > MAX_DEDUP_KEY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("dedup_key of an event is too long"),
				 errdetail("It has %d characters, of at most %d.", characters, MAX_DEDUP_KEY),
				 errhint("Use a short identifier, or a hash, of what must be recorded once.")));
}

/* A time that is past already means: at once. */
static TimestampTz
checked_deliver_at(TimestampTz deliver_at)
{
	TimestampTz now = GetCurrentTimestamp();

	if (TIMESTAMP_NOT_FINITE(deliver_at) || deliver_at - now > MAX_DELAY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("deliver_at of an event is out of range"),
				 TIMESTAMP_NOT_FINITE(deliver_at) ? errdetail("It is not a finite time.") : errdetail("It is more than ten years from now."),
				 errhint("Give a time within the next ten years, such as now() + interval '1 hour', or leave it null for at once.")));
	return deliver_at <= now ? 0 : deliver_at;
}

/* ---- headers and trace context ---- */

static bool
is_traceparent(const JsonbValue *name)
{
	return name->val.string.len == strlen("traceparent") &&
		pg_strncasecmp(name->val.string.val, "traceparent", name->val.string.len) == 0;
}

static void
check_header(const JsonbValue *name, const JsonbValue *value)
{
	const char *text = name->val.string.val;
	int			size = name->val.string.len;

	if (value->type != jbvString)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("value of header \"%.*s\" must be a string", size, text),
				 errdetail("It is of another JSON type."),
				 errhint("Write it as a string, such as {\"x-shop\": \"7\"}.")));
	if (is_traceparent(name))
		return;
	if (!outbox_field_name_valid(text, size))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%.*s\" is not a valid HTTP field name", size, text),
				 errdetail("A name has letters, digits and some punctuation, and at least one of them."),
				 errhint("Choose a name such as x-shop.")));
	if (outbox_field_name_reserved(text, size))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("header \"%.*s\" is reserved", size, text),
				 errdetail("It is set when the event is sent."),
				 errhint("Choose another name, such as x-shop.")));
	if (!outbox_field_value_valid(value->val.string.val, value->val.string.len))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("value of header \"%.*s\" is not a valid HTTP field value", size, text),
				 errdetail("It contains a control character, or a space at its beginning or end."),
				 errhint("Remove or encode such characters.")));
}

/* The headers without the one of this name. */
static Jsonb *
without(Jsonb *headers, const JsonbValue *name)
{
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_delete, JsonbPGetDatum(headers),
											  PointerGetDatum(cstring_to_text_with_len(name->val.string.val, name->val.string.len))));
}

/* Checks the headers and takes the trace context out of them. */
static void
set_headers(OutboxNewEvent *event, Jsonb *headers)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	name;
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers of an event must be a JSON object of strings"),
				 errdetail("They are of another JSON type."),
				 errhint("Write them as {\"name\": \"value\"}.")));
	check_size("headers of an event are too large", VARSIZE(headers), MAX_HEADERS, "Put data into the payload.");

	event->headers = headers;
	iterator = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&iterator, &name, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&iterator, &value, true);
		check_header(&name, &value);
		if (!is_traceparent(&name))
			continue;
		if (outbox_traceparent_valid(value.val.string.val, value.val.string.len))
			event->traceparent = cstring_to_text_with_len(value.val.string.val, value.val.string.len);
		event->headers = without(event->headers, &name);
	}
	if (JB_ROOT_COUNT(event->headers) == 0)
		event->headers = NULL;
}

/* ---- from arguments to an event ---- */

/* Zero stands for a time that was not given. */
static TimestampTz
given_time(TimestampTz at)
{
	return at == 0 ? 1 : at;
}

static OutboxNewEvent
checked(const Arguments *arguments, bool reserved)
{
	OutboxNewEvent event = {
		.type = arguments->type,
		.key = arguments->key,
		.tenant = arguments->tenant,
		.payload = arguments->payload,
		.body = arguments->body,
		.content_type = arguments->content_type,
		.dedup_key = arguments->dedup_key
	};

	check_given(event.type, "type");
	check_type(event.type, reserved);
	check_body(arguments);
	if (event.key != NULL)
		check_key(event.key, arguments->table);
	if (event.tenant != NULL)
		check_tenant(event.tenant);
	if (event.dedup_key != NULL)
		check_dedup_key(event.dedup_key);
	if (arguments->deliver_at != 0)
		event.deliver_at = checked_deliver_at(arguments->deliver_at);
	if (arguments->headers != NULL)
		set_headers(&event, arguments->headers);
	if (event.traceparent == NULL && outbox_traceparent != NULL &&
		outbox_traceparent_valid(outbox_traceparent, strlen(outbox_traceparent)))
		event.traceparent = cstring_to_text(outbox_traceparent);
	return event;
}

/* Records events that are scheduled or deduplicated, and those that come with them.  They get their ids before: a claimed key says whose it is. */
static void
record_with_care(OutboxNewEvent *events, int n, pg_uuid_t *ids)
{
	OutboxDatabase *database = outbox_bell_database(outbox_catalog_required()->extension);
	OutboxDedup *dedup = outbox_dedup_begin(events, n);
	pg_uuid_t  *own_ids = palloc_array(pg_uuid_t, n);
	bool	   *duplicate = palloc0_array(bool, n);
	OutboxNewEvent *logged = palloc_array(OutboxNewEvent, n);
	OutboxNewEvent *scheduled = palloc_array(OutboxNewEvent, n);
	pg_uuid_t  *log_ids = palloc_array(pg_uuid_t, n);
	int			n_logged = 0;
	int			n_scheduled = 0;

	if (dedup != NULL)
		outbox_dedup_find(dedup, ids, duplicate);
	for (int i = 0; i < n; i++)
	{
		if (duplicate[i])
			continue;
		outbox_log_take_id(database, &own_ids[i], &events[i].created_at);
		events[i].id = &own_ids[i];
		ids[i] = own_ids[i];
	}
	OUTBOX_FAULT("enqueue-after-ids");
	if (dedup != NULL)
	{
		outbox_dedup_claim(dedup, ids, duplicate);
		outbox_dedup_end(dedup);
		OUTBOX_FAULT("enqueue-after-claim");
	}
	for (int i = 0; i < n; i++)
	{
		if (duplicate[i])
			continue;
		if (events[i].deliver_at != 0)
			scheduled[n_scheduled++] = events[i];
		else
			logged[n_logged++] = events[i];
	}
	if (n_scheduled > 0)
		outbox_schedule_append(scheduled, n_scheduled);
	if (n_logged > 0)
		outbox_log_append(logged, n_logged, log_ids);
}

static void
record(OutboxNewEvent *events, int n, pg_uuid_t *ids)
{
	for (int i = 0; i < n; i++)
	{
		if (events[i].deliver_at != 0 || events[i].dedup_key != NULL)
		{
			record_with_care(events, n, ids);
			return;
		}
	}
	outbox_log_append(events, n, ids);
}

/* Checks and records one; returns its id, palloc'd. */
static pg_uuid_t *
append(const Arguments *arguments, bool reserved)
{
	OutboxNewEvent event = checked(arguments, reserved);
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	record(&event, 1, id);
	return id;
}

#define ARGUMENT_TEXT(n) (PG_ARGISNULL(n) ? NULL : PG_GETARG_TEXT_PP(n))
#define ARGUMENT_TIME(n) (PG_ARGISNULL(n) ? 0 : given_time(PG_GETARG_TIMESTAMPTZ(n)))
#define ARGUMENT_JSONB(n) (PG_ARGISNULL(n) ? NULL : PG_GETARG_JSONB_P(n))

/* enqueue(type text, payload jsonb, key text, headers jsonb, deliver_at timestamptz, dedup_key text, tenant text) → uuid */
PG_FUNCTION_INFO_V1(outbox_enqueue);
Datum
outbox_enqueue(PG_FUNCTION_ARGS)
{
	Arguments	arguments = {
		.type = ARGUMENT_TEXT(0),
		.payload = ARGUMENT_JSONB(1),
		.key = ARGUMENT_TEXT(2),
		.headers = ARGUMENT_JSONB(3),
		.deliver_at = ARGUMENT_TIME(4),
		.dedup_key = ARGUMENT_TEXT(5),
		.tenant = ARGUMENT_TEXT(6)
	};

	check_caller("outbox.enqueue()");
	check_given(arguments.payload, "payload");
	PG_RETURN_UUID_P(append(&arguments, false));
}

/* enqueue_raw(type text, body bytea, content_type text, key text, headers jsonb, deliver_at timestamptz, dedup_key text, tenant text) → uuid */
PG_FUNCTION_INFO_V1(outbox_enqueue_raw);
Datum
outbox_enqueue_raw(PG_FUNCTION_ARGS)
{
	Arguments	arguments = {
		.type = ARGUMENT_TEXT(0),
		.body = PG_ARGISNULL(1) ? NULL : PG_GETARG_BYTEA_PP(1),
		.content_type = ARGUMENT_TEXT(2),
		.key = ARGUMENT_TEXT(3),
		.headers = ARGUMENT_JSONB(4),
		.deliver_at = ARGUMENT_TIME(5),
		.dedup_key = ARGUMENT_TEXT(6),
		.tenant = ARGUMENT_TEXT(7)
	};

	check_caller("outbox.enqueue_raw()");
	check_given(arguments.body, "body");
	check_given(arguments.content_type, "content_type");
	PG_RETURN_UUID_P(append(&arguments, false));
}

/* _ping(subscription text) → uuid: an event for one subscription, of a type that only the extension may enqueue. */
PG_FUNCTION_INFO_V1(outbox_ping);
Datum
outbox_ping(PG_FUNCTION_ARGS)
{
	StringInfoData payload;
	Arguments	arguments = {0};

	check_caller("outbox.ping()");
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("subscription must not be null"),
				 errdetail("A ping is for one subscription."),
				 errhint("Call outbox.ping().")));

	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"subscription\": ");
	escape_json(&payload, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	appendStringInfoChar(&payload, '}');
	arguments.type = cstring_to_text("outbox.ping");
	arguments.payload = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(payload.data)));
	PG_RETURN_UUID_P(append(&arguments, true));
}

/* ---- for other rooms ---- */

void
outbox_enqueue_check_type(const text *type)
{
	check_type(type, false);
}

void
outbox_enqueue_change(const char *table, text *type, Jsonb *payload, text *key)
{
	Arguments	arguments = {.type = type, .payload = payload, .key = key, .table = table};

	check_caller("a change of a captured table");
	(void) append(&arguments, false);
}

/* ---- many at once ---- */

typedef struct Place
{
	int			number;			/* from 1 */
	int			total;
} Place;

/* Says which event an error is about. */
static void
name_place(void *arg)
{
	Place	   *place = arg;

	errcontext("event %d of %d", place->number, place->total);
}

/* A member that is a string; JSON null is the same as leaving it out. */
static text *
string_member(const char *name, const JsonbValue *value)
{
	if (value->type == jbvNull)
		return NULL;
	if (value->type != jbvString)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" of an event must be a string", name),
				 errdetail("It is of another JSON type."),
				 errhint("Write it as a string, or null for none.")));
	return cstring_to_text_with_len(value->val.string.val, value->val.string.len);
}

static TimestampTz
time_member(const char *name, const JsonbValue *value)
{
	text	   *time = string_member(name, value);

	if (time == NULL)
		return 0;
	return given_time(DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(text_to_cstring(time)),
															  ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1))));
}

static void
set_member(Arguments *arguments, const char *name, JsonbValue *value)
{
	if (strcmp(name, "type") == 0)
		arguments->type = string_member(name, value);
	else if (strcmp(name, "payload") == 0)
		arguments->payload = JsonbValueToJsonb(value);	/* also null: that is JSON */
	else if (strcmp(name, "key") == 0)
		arguments->key = string_member(name, value);
	else if (strcmp(name, "headers") == 0)
		arguments->headers = value->type == jbvNull ? NULL : JsonbValueToJsonb(value);
	else if (strcmp(name, "deliver_at") == 0)
		arguments->deliver_at = time_member(name, value);
	else if (strcmp(name, "dedup_key") == 0)
		arguments->dedup_key = string_member(name, value);
	else if (strcmp(name, "tenant") == 0)
		arguments->tenant = string_member(name, value);
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown member \"%s\" of an event", name),
				 errdetail("Ignoring it would lose what was meant."),
				 errhint("Members are type, payload, key, headers, deliver_at, dedup_key and tenant.")));
}

static OutboxNewEvent
checked_element(JsonbValue *element)
{
	Arguments	arguments = {0};
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	name;
	JsonbValue	value;

	if (element->type != jbvBinary || !JsonContainerIsObject(element->val.binary.data))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an event must be a JSON object"),
				 errdetail("It is of another JSON type."),
				 errhint("Write it as {\"type\": \"order.paid\", \"payload\": {}}.")));

	iterator = JsonbIteratorInit(element->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &name, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&iterator, &value, true);
		set_member(&arguments, pnstrdup(name.val.string.val, name.val.string.len), &value);
	}
	check_given(arguments.payload, "payload");
	return checked(&arguments, false);
}

static int
check_all(Jsonb *array, OutboxNewEvent *events)
{
	Place		place = {.total = JB_ROOT_COUNT(array)};
	ErrorContextCallback context = {.previous = error_context_stack, .callback = name_place, .arg = &place};
	JsonbIterator *iterator = JsonbIteratorInit(&array->root);
	JsonbIteratorToken token;
	JsonbValue	element;

	error_context_stack = &context;
	while ((token = JsonbIteratorNext(&iterator, &element, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		CHECK_FOR_INTERRUPTS();
		place.number++;
		events[place.number - 1] = checked_element(&element);
	}
	error_context_stack = context.previous;
	return place.number;
}

/* enqueue_many(events jsonb) → uuid[]: all or none, ids in the order of the array. */
PG_FUNCTION_INFO_V1(outbox_enqueue_many);
Datum
outbox_enqueue_many(PG_FUNCTION_ARGS)
{
	Jsonb	   *array;
	OutboxNewEvent *events;
	pg_uuid_t  *ids;
	Datum	   *values;
	int			n;

	check_caller("outbox.enqueue_many()");
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("events must not be null"),
				 errdetail("For no events there is the empty array."),
				 errhint("Give a JSON array of objects.")));
	array = PG_GETARG_JSONB_P(0);
	if (!JB_ROOT_IS_ARRAY(array) || JB_ROOT_IS_SCALAR(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("events must be a JSON array of objects"),
				 errdetail("They are of another JSON type."),
				 errhint("Write them as [{\"type\": \"order.paid\", \"payload\": {}}].")));

	if (JB_ROOT_COUNT(array) == 0)
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(UUIDOID));
	events = palloc_array(OutboxNewEvent, JB_ROOT_COUNT(array));
	ids = palloc_array(pg_uuid_t, JB_ROOT_COUNT(array));
	values = palloc_array(Datum, JB_ROOT_COUNT(array));
	n = check_all(array, events);
	record(events, n, ids);
	for (int i = 0; i < n; i++)
		values[i] = UUIDPGetDatum(&ids[i]);
	PG_RETURN_ARRAYTYPE_P(construct_array(values, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}

/* ---- the view ---- */

/* A column of the new row; false if it is null. */
static bool
new_column(TriggerData *trigger, const char *name, Datum *value)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	int			number = SPI_fnumber(descriptor, name);
	bool		isnull;

	if (number <= 0)
		elog(ERROR, "view \"%s\" has no column \"%s\"", RelationGetRelationName(trigger->tg_relation), name);
	*value = heap_getattr(trigger->tg_trigtuple, number, descriptor, &isnull);
	return !isnull;
}

static text *
new_text(TriggerData *trigger, const char *name)
{
	Datum		value;

	return new_column(trigger, name, &value) ? DatumGetTextPP(value) : NULL;
}

static Jsonb *
new_jsonb(TriggerData *trigger, const char *name)
{
	Datum		value;

	return new_column(trigger, name, &value) ? DatumGetJsonbP(value) : NULL;
}

/* The new row with its id, for RETURNING. */
static HeapTuple
with_id(TriggerData *trigger, pg_uuid_t *id)
{
	TupleDesc	descriptor = RelationGetDescr(trigger->tg_relation);
	int			number = SPI_fnumber(descriptor, "id");
	Datum		value = UUIDPGetDatum(id);
	bool		isnull = false;

	return heap_modify_tuple_by_cols(trigger->tg_trigtuple, descriptor, 1, &number, &value, &isnull);
}

/* _new_event() → trigger: INSTEAD OF INSERT on new_event. */
PG_FUNCTION_INFO_V1(outbox_new_event);
Datum
outbox_new_event(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Arguments	arguments = {0};
	Datum		deliver_at;
	Datum		ignored;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_INSTEAD(trigger->tg_event) || !TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox._new_event() must be called INSTEAD OF INSERT")));

	check_caller("INSERT INTO outbox.new_event");
	if (new_column(trigger, "id", &ignored))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("id of an event cannot be given"),
				 errdetail("Ids are made when events are recorded, in increasing order."),
				 errhint("Leave it out, and read it with RETURNING id.")));

	arguments.type = new_text(trigger, "type");
	arguments.payload = new_jsonb(trigger, "payload");
	arguments.key = new_text(trigger, "key");
	arguments.headers = new_jsonb(trigger, "headers");
	if (new_column(trigger, "deliver_at", &deliver_at))
		arguments.deliver_at = given_time(DatumGetTimestampTz(deliver_at));
	arguments.dedup_key = new_text(trigger, "dedup_key");
	arguments.tenant = new_text(trigger, "tenant");
	check_given(arguments.payload, "payload");
	PG_RETURN_POINTER(with_id(trigger, append(&arguments, false)));
}
