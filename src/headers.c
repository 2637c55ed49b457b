/*
 * The static headers of a subscription: what its option "headers" may hold, and the lines it becomes.
 *
 * They hold tokens, so no message repeats a value.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "field.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

#define MAX_HEADERS 32
#define MAX_SIZE 8192			/* of all lines */

static void
refuse(const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for subscription option \"headers\""),
			 errdetail_internal("%s", detail),
			 errhint("%s", hint)));
}

/* Names before it, to which it must not be equal: case does not count. */
static void
check_header(const JsonbValue *name, const JsonbValue *value, Datum *names, int n)
{
	const char *bytes = name->val.string.val;
	int			size = name->val.string.len;

	if (!outbox_field_name_valid(bytes, size))
		refuse(psprintf("\"%.*s\" is not a valid HTTP field name.", pg_mbcliplen(bytes, size, 255), bytes), "Choose a name of letters, digits and \"-\", such as Authorization.");
	if (outbox_field_name_reserved(bytes, size))
		refuse(psprintf("Header \"%.*s\" is reserved.", size, bytes), "Leave it out: it is set when an event is sent, or would change how.");
	for (int i = 0; i < n; i++)
	{
		text	   *other = DatumGetTextPP(names[i]);

		if (VARSIZE_ANY_EXHDR(other) == size && pg_strncasecmp(VARDATA_ANY(other), bytes, size) == 0)
			refuse(psprintf("Header \"%.*s\" is given twice.", size, bytes), "Upper and lower case do not differ here: give it once.");
	}
	if (value->type != jbvString)
		refuse(psprintf("The value of header \"%.*s\" is not a string.", size, bytes), "Write it as a string, such as {\"x-shop\": \"7\"}.");
	if (!outbox_field_value_valid(value->val.string.val, value->val.string.len))
		refuse(psprintf("The value of header \"%.*s\" is not a valid HTTP field value: it has a control character, a space at its beginning or end, or is too long.", size, bytes),
			   "Remove or encode such characters.");
}

/*
 * _header_lines(headers jsonb) → (names text[], lines bytea): the lines "name: value", each with a newline, in UTF-8.  Refuses (22023) what is not an object of at most 32 valid
 * headers with at most 8 kB in all.
 */
PG_FUNCTION_INFO_V1(outbox_header_lines);
Datum
outbox_header_lines(PG_FUNCTION_ARGS)
{
	Jsonb	   *headers = PG_GETARG_JSONB_P(0);
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	name;
	JsonbValue	value;
	StringInfoData lines;
	char	   *converted;
	int			size;
	TupleDesc	descriptor;
	Datum		names[MAX_HEADERS];
	int			n = 0;
	Datum		values[2];
	bool		nulls[2] = {false};

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (!JB_ROOT_IS_OBJECT(headers))
		refuse("It is not a JSON object.", "Write headers as {\"name\": \"value\"}.");
	if (JB_ROOT_COUNT(headers) > MAX_HEADERS)
		refuse(psprintf("There are %d headers; at most %d are permitted.", JB_ROOT_COUNT(headers), MAX_HEADERS), "Use fewer.");

	initStringInfo(&lines);
	iterator = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&iterator, &name, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&iterator, &value, true);
		check_header(&name, &value, names, n);
		names[n++] = PointerGetDatum(cstring_to_text_with_len(name.val.string.val, name.val.string.len));
		appendBinaryStringInfo(&lines, name.val.string.val, name.val.string.len);
		appendStringInfoString(&lines, ": ");
		appendBinaryStringInfo(&lines, value.val.string.val, value.val.string.len);
		appendStringInfoChar(&lines, '\n');
	}
	/* of SQL_ASCII nobody knows what it is, and the error would quote it */
	converted = GetDatabaseEncoding() == PG_SQL_ASCII ? lines.data : pg_server_to_any(lines.data, lines.len, PG_UTF8);
	size = converted == lines.data ? lines.len : (int) strlen(converted);
	if (size > MAX_SIZE)
		refuse(psprintf("Names and values have %d bytes; at most %d are permitted.", size, MAX_SIZE), "Use fewer or shorter headers.");
	values[0] = PointerGetDatum(construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT));
	values[1] = PointerGetDatum(cstring_to_text_with_len(converted, size));	/* text and bytea are the same in memory */
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}
