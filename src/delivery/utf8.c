/*
 * Text of the database as UTF-8.
 *
 * An event that cannot be converted must not stop the reading of the log, so this uses the conversion that reports instead of raising.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "utf8.h"

static bool
is_ascii(const char *text, size_t size)
{
	for (size_t i = 0; i < size; i++)
	{
		if (IS_HIGHBIT_SET(text[i]))
			return false;
	}
	return true;
}

char *
outbox_utf8(char *text, size_t *size, bool *sure)
{
	int			encoding = GetDatabaseEncoding();
	Oid			conversion;
	char	   *result;

	if (encoding == PG_UTF8 || is_ascii(text, *size))
		return text;
	conversion = encoding == PG_SQL_ASCII ? InvalidOid : FindDefaultConversionProc(encoding, PG_UTF8);
	if (OidIsValid(conversion) && *size < MaxAllocSize / MAX_CONVERSION_GROWTH)
	{
		size_t		room = *size * MAX_CONVERSION_GROWTH + 1;

		result = palloc(room);
		if (pg_do_encoding_conversion_buf(conversion, encoding, PG_UTF8, (unsigned char *) text, (int) *size,
										  (unsigned char *) result, (int) room, true) == (int) *size)
		{
			*size = strlen(result);
			return repalloc(result, *size + 1);
		}
		pfree(result);
	}
	*sure = false;
	return text;
}
