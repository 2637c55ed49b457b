/*
 * Records of outbox.secret.
 *
 * A record is plain (key_id is NULL), or encrypted with the key of this id; what is encrypted is bound to its subscription and kind.  No function here gives plain
 * bytes to SQL: sessions encrypt, and only the delivery worker decrypts what it sends with.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "compat.h"
#include "vault.h"

#define ABOUT 64

/* What is encrypted along without being stored: a record of another subscription or kind does not open.  The number is that of this scheme. */
static void
describe(char *about, Size size, const char *kind, int32 subscription)
{
	snprintf(about, size, "outbox:1:%s:%d", kind, subscription);
}

unsigned char *
outbox_vault_read(const OutboxKeyring *keyring, const char *kind, int32 subscription, const char *key_id, const bytea *stored, Size *size)
{
	const unsigned char *bytes = (const unsigned char *) VARDATA_ANY(stored);
	Size		n = VARSIZE_ANY_EXHDR(stored);
	const unsigned char *key;
	unsigned char *plain;
	char		about[ABOUT];

	if (key_id == NULL)
	{
		plain = palloc(n + 1);
		memcpy(plain, bytes, n);
	}
	else
	{
		key = outbox_keyring_find(keyring, key_id);
		if (key == NULL || n < OUTBOX_CIPHER_EXTRA)
			return NULL;
		plain = palloc(n - OUTBOX_CIPHER_EXTRA + 1);
		describe(about, sizeof(about), kind, subscription);
		if (!outbox_cipher_open(key, about, bytes, n, plain))
		{
			pfree(plain);
			return NULL;
		}
		n -= OUTBOX_CIPHER_EXTRA;
	}
	plain[n] = '\0';
	*size = n;
	return plain;
}

void
outbox_vault_wipe(void *memory, Size size)
{
	outbox_cipher_wipe(memory, size);
}

/* The bytes as they are stored; the first key must be there. */
static bytea *
encrypt(const OutboxKeyring *keyring, const char *kind, int32 subscription, const void *plain, Size size)
{
	bytea	   *stored = palloc(VARHDRSZ + size + OUTBOX_CIPHER_EXTRA);
	char		about[ABOUT];

	SET_VARSIZE(stored, VARHDRSZ + size + OUTBOX_CIPHER_EXTRA);
	describe(about, sizeof(about), kind, subscription);
	if (!outbox_cipher_seal(outbox_keyring_first(keyring), about, plain, size, (unsigned char *) VARDATA(stored)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not encrypt a secret")));
	return stored;
}

/*
 * _encrypt(kind text, subscription_id integer, plain bytea) → (secret bytea, key_id text): as it is to be stored; plain without outbox.secret_key_file.  Refuses (F0000) when the
 * file cannot be used: who asked for encryption shall not get less.
 */
PG_FUNCTION_INFO_V1(outbox_encrypt);
Datum
outbox_encrypt(PG_FUNCTION_ARGS)
{
	OutboxKeyring *keyring = outbox_keyring_open();
	bytea	   *plain = PG_GETARG_BYTEA_PP(2);
	TupleDesc	descriptor;
	Datum		values[2] = {PointerGetDatum(plain)};
	bool		nulls[2] = {false, true};

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (outbox_keyring_problem(keyring) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("cannot store a secret"),
				 errdetail("%s", outbox_keyring_problem(keyring)),
				 errhint("Have an administrator repair the file that outbox.secret_key_file names.")));
	if (outbox_keyring_first(keyring) != NULL)
	{
		values[0] = PointerGetDatum(encrypt(keyring, text_to_cstring(PG_GETARG_TEXT_PP(0)), PG_GETARG_INT32(1), VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain)));
		values[1] = CStringGetTextDatum(outbox_keyring_id(keyring, 0));
		nulls[1] = false;
	}
	outbox_keyring_close(keyring);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}

/* ---- records as they are ---- */

/* A record of a query's result, whose columns are id, subscription_id, kind, secret and key_id. */
typedef struct Record
{
	int32		id;
	int32		subscription;
	char	   *kind;
	bytea	   *stored;
	char	   *key_id;			/* NULL: plain */
} Record;

static Record
get_record(SPITupleTable *table, uint64 row)
{
	HeapTuple	tuple = table->vals[row];
	bool		null;
	Record		record;

	record.id = DatumGetInt32(SPI_getbinval(tuple, table->tupdesc, 1, &null));
	record.subscription = DatumGetInt32(SPI_getbinval(tuple, table->tupdesc, 2, &null));
	record.kind = SPI_getvalue(tuple, table->tupdesc, 3);
	record.stored = DatumGetByteaPP(SPI_getbinval(tuple, table->tupdesc, 4, &null));
	record.key_id = SPI_getvalue(tuple, table->tupdesc, 5);
	return record;
}

static const char *
state_of(const OutboxKeyring *keyring, const Record *record)
{
	const char *first = outbox_keyring_id(keyring, 0);
	Size		size;
	unsigned char *plain = outbox_vault_read(keyring, record->kind, record->subscription, record->key_id, record->stored, &size);

	if (plain == NULL)
		return "unreadable";
	outbox_cipher_wipe(plain, size);
	pfree(plain);
	if (record->key_id == NULL)
		return "plain";
	return strcmp(record->key_id, first) == 0 ? "encrypted" : "old key";
}

/*
 * _secret_states(subscription_id integer) → table (id integer, subscription_id integer, kind text, state text): what the keys there are make of a subscription's records, or (NULL) of all.
 * state: encrypted (with the first key), old key, plain, unreadable.
 */
PG_FUNCTION_INFO_V1(outbox_secret_states);
Datum
outbox_secret_states(PG_FUNCTION_ARGS)
{
	static const char query[] = "SELECT k.id, k.subscription_id, k.kind, k.secret, k.key_id FROM outbox.secret AS k WHERE $1 IS NULL OR k.subscription_id = $1";
	Oid			types[] = {INT4OID};
	Datum		arguments[] = {PG_GETARG_DATUM(0)};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	OutboxKeyring *keyring;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	if (SPI_execute_with_args(query, 1, types, arguments, PG_ARGISNULL(0) ? "n" : " ", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed: %s", query);
	keyring = outbox_keyring_open();
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Record		record = get_record(SPI_tuptable, i);
		Datum		values[4] = {
			Int32GetDatum(record.id),
			Int32GetDatum(record.subscription),
			CStringGetTextDatum(record.kind),
			CStringGetTextDatum(state_of(keyring, &record))
		};
		bool		nulls[4] = {false};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	outbox_keyring_close(keyring);
	SPI_finish();
	return (Datum) 0;
}

/* _key_problem() → text: why the file that outbox.secret_key_file names cannot be used; '': it can; NULL: none is named. */
PG_FUNCTION_INFO_V1(outbox_key_problem);
Datum
outbox_key_problem(PG_FUNCTION_ARGS)
{
	OutboxKeyring *keyring;
	const char *problem;

	if (!outbox_keyring_wanted())
		PG_RETURN_NULL();
	keyring = outbox_keyring_open();
	outbox_keyring_close(keyring);
	problem = outbox_keyring_problem(keyring);
	PG_RETURN_TEXT_P(cstring_to_text(problem == NULL ? "" : problem));
}

/* ---- renewal ---- */

/* Records under other keys than the first, of those that are known. */
static const char select_old[] =
"SELECT k.id, k.subscription_id, k.kind, k.secret, k.key_id FROM outbox.secret AS k"
" WHERE k.key_id IS NULL OR k.key_id <> ($1::pg_catalog.text[])[1] AND k.key_id = ANY ($1) ORDER BY k.id";

/* Only what is still the same, and not locked. */
static const char replace[] =
"UPDATE outbox.secret AS k SET secret = $3, key_id = $4 FROM ("
"  SELECT o.id FROM outbox.secret AS o WHERE o.id = $1 AND o.secret = $2 FOR UPDATE SKIP LOCKED OFFSET 0) AS x"
" WHERE k.id = x.id";

static Datum
known_ids(const OutboxKeyring *keyring)
{
	Datum		ids[64];
	int			n = 0;

	for (const char *id; n < lengthof(ids) && (id = outbox_keyring_id(keyring, n)) != NULL; n++)
		ids[n] = CStringGetTextDatum(id);
	return PointerGetDatum(construct_array(ids, n, TEXTOID, -1, false, TYPALIGN_INT));
}

static uint64
renew_one(const OutboxKeyring *keyring, const Record *record)
{
	Oid			types[] = {INT4OID, BYTEAOID, BYTEAOID, TEXTOID};
	Datum		values[4] = {Int32GetDatum(record->id), PointerGetDatum(record->stored)};
	Size		size;
	unsigned char *plain = outbox_vault_read(keyring, record->kind, record->subscription, record->key_id, record->stored, &size);

	if (plain == NULL)
		return 0;
	values[2] = PointerGetDatum(encrypt(keyring, record->kind, record->subscription, plain, size));
	values[3] = CStringGetTextDatum(outbox_keyring_id(keyring, 0));
	outbox_cipher_wipe(plain, size);
	pfree(plain);
	if (SPI_execute_with_args(replace, 4, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "SPI failed: %s", replace);
	return SPI_processed;
}

uint64
outbox_vault_renew(int at_most)
{
	OutboxKeyring *keyring = outbox_keyring_open();
	uint64		renewed = 0;

	if (outbox_keyring_first(keyring) != NULL)
	{
		Oid			types[] = {TEXTARRAYOID};
		Datum		values[] = {known_ids(keyring)};
		SPITupleTable *table;
		uint64		n;

		if (SPI_execute_with_args(select_old, 1, types, values, NULL, false, 0) != SPI_OK_SELECT)
			elog(ERROR, "SPI failed: %s", select_old);
		table = SPI_tuptable;
		n = SPI_processed;
		for (uint64 i = 0; i < n && renewed < at_most; i++)
		{
			Record		record = get_record(table, i);

			renewed += renew_one(keyring, &record);
		}
	}
	outbox_keyring_close(keyring);
	return renewed;
}
