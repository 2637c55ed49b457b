/*
 * The configuration cache.
 *
 * Reads outbox.subscription and what belongs to it into plain structs that the loop can use without a transaction.  Secrets live
 * only here, decrypted, and are wiped with their context.  Keys live no longer than it takes to read the secrets of all.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "field.h"
#include "pattern.h"
#include "vault.h"
#include "subscription.h"

static const char load_query[] =
"SELECT s.id, s.name, s.state = 'active', s.ordering = 'key', s.on_dead = 'block', s.max_in_flight, s.max_blocked,"
"       s.url, s.network = 'private', s.ports,"
"       (pg_catalog.date_part('epoch', s.timeout) * 1e6)::int8, (pg_catalog.date_part('epoch', s.connect_timeout) * 1e6)::int8,"
"       s.response_kept,"
"       (pg_catalog.date_part('epoch', s.retry_base) * 1e6)::int8, s.retry_factor,"
"       (pg_catalog.date_part('epoch', s.retry_max) * 1e6)::int8, s.retry_jitter, s.max_attempts,"
"       (pg_catalog.date_part('epoch', s.give_up_after) * 1e6)::int8, s.fatal_statuses, s.types, s.tenant,"
"       s.start_epoch, s.start_snapshot, s.start_next, s.start_clock, s.start_after,"
"       s.format, s.batch_size, s.batch_bytes, (pg_catalog.date_part('epoch', s.batch_linger) * 1e6)::int8,"
"       s.state = 'disabled' AND s.reason = '" OUTBOX_UNREADABLE "',"
"       s.ca,"
"       s.rate_limit, s.breaker_threshold, (pg_catalog.date_part('epoch', s.breaker_probe) * 1e6)::int8,"
"       (pg_catalog.date_part('epoch', s.breaker_max) * 1e6)::int8, (pg_catalog.date_part('epoch', s.disable_after) * 1e6)::int8,"
"       s.failing_since, s.state_since, s.filter"
"  FROM outbox.subscription s ORDER BY s.id";

static const char secrets_query[] =
"SELECT k.subscription_id, k.secret, k.expires_at, k.kind, k.key_id FROM outbox.secret k"
" WHERE k.expires_at IS NULL OR k.expires_at > pg_catalog.clock_timestamp() ORDER BY k.subscription_id, k.id DESC";

static const char matches_query[] =
"SELECT m.subscription_id, m.types, m.tenant, m.until_snapshot, m.until_next, m.until_clock, m.filter"
"  FROM outbox.subscription_match m WHERE m.epoch = $1 ORDER BY m.subscription_id, m.version";

/* Column access for the current SPI result; column numbers count from 1. */
static Datum
column(int row, int number, bool *null)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number, null);
}

static int64
integer(int row, int number)
{
	bool		null;
	Datum		value = column(row, number, &null);

	return TupleDescAttr(SPI_tuptable->tupdesc, number - 1)->atttypid == INT8OID ? DatumGetInt64(value) : DatumGetInt32(value);
}

static bool
boolean(int row, int number)
{
	bool		null;

	return DatumGetBool(column(row, number, &null)) && !null;
}

/* 0: NULL. */
static double
real(int row, int number)
{
	bool		null;
	Datum		value = column(row, number, &null);

	return null ? 0 : DatumGetFloat8(value);
}

/* 0: NULL. */
static TimestampTz
instant(int row, int number)
{
	bool		null;
	Datum		value = column(row, number, &null);

	return null ? 0 : DatumGetTimestampTz(value);
}

static char *
string(int row, int number)
{
	bool		null;
	Datum		value = column(row, number, &null);

	return null ? NULL : TextDatumGetCString(value);
}

static char **
strings(int row, int number, int *n)
{
	bool		null;
	Datum	   *elements;
	char	  **result;

	deconstruct_array(DatumGetArrayTypeP(column(row, number, &null)), TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, n);
	result = palloc(Max(*n, 1) * sizeof(char *));
	for (int i = 0; i < *n; i++)
		result[i] = TextDatumGetCString(elements[i]);
	return result;
}

static Datum *
integers(int row, int number, int *n)
{
	bool		null;
	Datum	   *elements;

	deconstruct_array(DatumGetArrayTypeP(column(row, number, &null)), INT4OID, sizeof(int32), true, TYPALIGN_INT, &elements, NULL, n);
	return elements;
}

static JsonPath *
path(int row, int number)
{
	bool		null;
	Datum		value = column(row, number, &null);

	return null ? NULL : DatumGetJsonPathPCopy(value);
}

static OutboxSnapshot *
snapshot(int row, int number)
{
	bool		null,
				null_next,
				null_clock;
	Datum		value = column(row, number, &null);
	Datum		next = column(row, number + 1, &null_next);
	Datum		clock = column(row, number + 2, &null_clock);

	if (null || null_next || null_clock)
		return NULL;
	return outbox_snapshot_from_datum(value, U64FromFullTransactionId(DatumGetFullTransactionId(next)),
									  (uint64) DatumGetInt64(clock));
}

static void
load_endpoint(OutboxSubscription *subscription, int row)
{
	OutboxEndpoint *endpoint = &subscription->endpoint;
	uint16_t   *ports;
	Datum	   *values = integers(row, 10, &endpoint->n_ports);

	ports = palloc(Max(endpoint->n_ports, 1) * sizeof(uint16_t));
	for (int i = 0; i < endpoint->n_ports; i++)
		ports[i] = (uint16_t) DatumGetInt32(values[i]);
	endpoint->ports = ports;
	endpoint->url = string(row, 8);
	endpoint->network = boolean(row, 9) ? OUTBOX_NETWORK_PRIVATE : OUTBOX_NETWORK_PUBLIC;
	endpoint->timeout = integer(row, 11);
	endpoint->connect_timeout = integer(row, 12);
	endpoint->response_kept = integer(row, 13);
	endpoint->ca = string(row, 33);
}

static void
load_format(OutboxSubscription *subscription, int row)
{
	const char *format = string(row, 28);

	if (strcmp(format, "structured") == 0)
		subscription->format = OUTBOX_FORMAT_STRUCTURED;
	else if (strcmp(format, "batch") == 0)
		subscription->format = OUTBOX_FORMAT_BATCH;
	else
		subscription->format = OUTBOX_FORMAT_BINARY;
	subscription->batch_size = integer(row, 29);
	subscription->batch_bytes = integer(row, 30);
	subscription->batch_linger = integer(row, 31);
}

static void
load_retry(OutboxRetryPolicy *retry, int row)
{
	int		   *statuses;
	Datum	   *values = integers(row, 20, &retry->n_fatal_statuses);

	statuses = palloc(Max(retry->n_fatal_statuses, 1) * sizeof(int));
	for (int i = 0; i < retry->n_fatal_statuses; i++)
		statuses[i] = DatumGetInt32(values[i]);
	retry->fatal_statuses = statuses;
	retry->base = integer(row, 14);
	retry->factor = real(row, 15);
	retry->max = integer(row, 16);
	retry->jitter = real(row, 17);
	retry->max_attempts = integer(row, 18);
	retry->give_up_after = integer(row, 19);
}

static void
load_limits(OutboxSubscription *subscription, int row)
{
	subscription->max_in_flight = integer(row, 6);
	subscription->max_blocked = integer(row, 7);
	subscription->rate_limit = real(row, 34);
	subscription->breaker.threshold = integer(row, 35);
	subscription->breaker.probe = integer(row, 36);
	subscription->breaker.max = integer(row, 37);
	subscription->disable_after = integer(row, 38);
	subscription->failing_since = instant(row, 39);
	subscription->state_since = instant(row, 40);
}

static void
wipe(void *arg)
{
	OutboxSubscription *subscription = arg;

	for (int i = 0; i < subscription->n_signers; i++)
		outbox_signer_free(subscription->signers[i]);
	if (subscription->header_lines != NULL)
		outbox_vault_wipe(subscription->header_lines, subscription->header_size);
}

/* What routing goes by. */
static void
hash_match(OutboxMatch *match)
{
	match->exact = true;
	match->type_hashes = palloc(Max(match->n_types, 1) * sizeof(uint64));
	for (int i = 0; i < match->n_types; i++)
	{
		match->exact &= strchr(match->types[i], '*') == NULL;
		match->type_hashes[i] = outbox_chunk_hash(match->types[i]);
	}
	if (match->tenant != NULL)
		match->tenant_hash = outbox_chunk_hash(match->tenant);
}

static OutboxSubscription *
load_one(int64 epoch, int row)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "outbox subscription", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	OutboxSubscription *subscription = palloc0(sizeof(OutboxSubscription));
	bool		null;
	Datum		after;

	subscription->context = context;
	subscription->callback.func = wipe;
	subscription->callback.arg = subscription;
	MemoryContextRegisterResetCallback(context, &subscription->callback);
	subscription->pins = 1;
	subscription->id = integer(row, 1);
	subscription->name = string(row, 2);
	subscription->active = boolean(row, 3);
	subscription->ordered = boolean(row, 4);
	subscription->block_on_dead = boolean(row, 5);
	load_limits(subscription, row);
	load_format(subscription, row);
	load_endpoint(subscription, row);
	subscription->pull = subscription->endpoint.url == NULL;
	load_retry(&subscription->retry, row);
	subscription->match.types = strings(row, 21, &subscription->match.n_types);
	subscription->match.tenant = string(row, 22);
	subscription->match.filter = path(row, 41);
	hash_match(&subscription->match);
	subscription->start_epoch = integer(row, 23);
	subscription->start = snapshot(row, 24);
	after = column(row, 27, &null);
	subscription->has_start_after = !null;
	if (!null)
		subscription->start_after = *DatumGetUUIDP(after);
	subscription->was_unreadable = boolean(row, 32);
	subscription->secrets_until = DT_NOEND;
	MemoryContextSwitchTo(old);
	return subscription;
}

static OutboxSubscription *
by_id(OutboxSubscription **all, int n, int32 id)
{
	int			low = 0;

	while (low < n)
	{
		int			middle = low + (n - low) / 2;

		if (all[middle]->id == id)
			return all[middle];
		if (all[middle]->id < id)
			low = middle + 1;
		else
			n = middle;
	}
	return NULL;
}

static void
add_signer(OutboxSubscription *subscription, const unsigned char *key, Size size)
{
	OutboxSigner *signer;

	if (subscription->n_signers == OUTBOX_MAX_SECRETS)
		return;
	signer = outbox_signer_create(key, size);
	if (signer == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not prepare a signing key of subscription \"%s\"", subscription->name)));
	subscription->signers[subscription->n_signers++] = signer;
}

/* Lines "name: value", each with a newline (_header_lines); checked again, for with a wrong one every event would become a dead letter. */
static void
take_headers(OutboxSubscription *subscription, const unsigned char *lines, Size size)
{
	char	   *line = MemoryContextAlloc(subscription->context, size + 1);
	char	   *end = line + size;
	int			n = 0;

	memcpy(line, lines, size);
	*end = '\0';
	subscription->header_lines = line;
	subscription->header_size = size;
	for (char *c = line; c < end; c++)
		n += *c == '\n';
	subscription->headers = MemoryContextAlloc(subscription->context, Max(n, 1) * sizeof(OutboxHeader));
	while (line < end)
	{
		char	   *newline = strchr(line, '\n');
		char	   *colon = strstr(line, ": ");

		if (newline == NULL || colon == NULL || colon > newline)
		{
			subscription->unreadable = true;
			return;
		}
		*newline = *colon = '\0';
		if (!outbox_field_name_valid(line, strlen(line)) || outbox_field_name_reserved(line, strlen(line)) ||
			!outbox_field_value_valid(colon + 2, strlen(colon + 2)))
			subscription->unreadable = true;
		subscription->headers[subscription->n_headers].name = line;
		subscription->headers[subscription->n_headers++].value = colon + 2;
		line = newline + 1;
	}
}

/* The newest secrets sign; an expiring one does until it expires.  One that cannot be read stops its subscription: what it would send would be refused, or worse, accepted. */
static void
load_secret(OutboxSubscription *subscription, const OutboxKeyring *keyring, int row)
{
	bool		null;
	bytea	   *stored = DatumGetByteaPP(column(row, 2, &null));
	char	   *kind = string(row, 4);
	Size		size;
	unsigned char *plain = outbox_vault_read(keyring, kind, subscription->id, string(row, 5), stored, &size);
	Datum		expires = column(row, 3, &null);

	if (!null)
		subscription->secrets_until = Min(subscription->secrets_until, DatumGetTimestampTz(expires));
	if (plain == NULL)
	{
		subscription->unreadable = true;
		return;
	}
	if (strcmp(kind, "signing") == 0)
		add_signer(subscription, plain, size);
	else
		take_headers(subscription, plain, size);
	outbox_vault_wipe(plain, size);
	pfree(plain);
}

static void
load_secrets(OutboxSubscription **all, int n)
{
	OutboxKeyring *keyring = outbox_keyring_open();

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		OutboxSubscription *subscription = by_id(all, n, integer(i, 1));

		if (subscription != NULL)
			load_secret(subscription, keyring, i);
	}
	outbox_keyring_close(keyring);

	for (int i = 0; i < n; i++)
	{
		/* somebody has deleted it: receivers would refuse what is not signed */
		if (all[i]->n_signers == 0 && !all[i]->pull)
			all[i]->unreadable = true;
	}
}

static void
load_matches(OutboxSubscription **all, int n)
{
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		OutboxSubscription *subscription = by_id(all, n, integer(i, 1));
		MemoryContext old;
		OutboxMatch *match;

		if (subscription == NULL)
			continue;
		old = MemoryContextSwitchTo(subscription->context);
		if (subscription->earlier == NULL)
			subscription->earlier = palloc0(sizeof(OutboxMatch));
		else
			subscription->earlier = repalloc(subscription->earlier, (subscription->n_earlier + 1) * sizeof(OutboxMatch));
		match = &subscription->earlier[subscription->n_earlier++];
		match->types = strings(i, 2, &match->n_types);
		match->tenant = string(i, 3);
		match->filter = path(i, 7);
		match->until = snapshot(i, 4);
		MemoryContextSwitchTo(old);
	}
}

static void
run(const char *query, int parameters, int64 epoch)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(epoch)};

	if (SPI_execute_with_args(query, parameters, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed: %s", query);
}

List *
outbox_subscription_load(int64 epoch)
{
	OutboxSubscription **all;
	List	   *list = NIL;
	int			n;

	run(load_query, 0, epoch);
	n = (int) SPI_processed;
	all = palloc(Max(n, 1) * sizeof(OutboxSubscription *));
	for (int i = 0; i < n; i++)
		all[i] = load_one(epoch, i);
	run(secrets_query, 0, epoch);
	load_secrets(all, n);
	run(matches_query, 1, epoch);
	load_matches(all, n);

	/* Nothing raises any more: from here on they live until they are unpinned. */
	for (int i = 0; i < n; i++)
	{
		list = lappend(list, all[i]);
		MemoryContextSetParent(all[i]->context, TopMemoryContext);
	}
	return list;
}

OutboxSubscription *
outbox_subscription_pin(OutboxSubscription *subscription)
{
	subscription->pins++;
	return subscription;
}

void
outbox_subscription_unpin(OutboxSubscription *subscription)
{
	if (--subscription->pins > 0)
		return;
	MemoryContextDelete(subscription->context);
}

bool
outbox_subscription_forget(OutboxSubscription *subscription, const OutboxSnapshot *passed)
{
	int			n = 0;

	while (n < subscription->n_earlier && subscription->earlier[n].until->xmax <= passed->xmin)
		n++;
	subscription->n_earlier -= n;
	memmove(subscription->earlier, subscription->earlier + n, subscription->n_earlier * sizeof(OutboxMatch));
	return n > 0;
}

/* Names consist of characters that need no escape in JSON, so the payload that outbox.ping() made can be compared as text. */
static bool
is_pinged(const OutboxSubscription *subscription, const OutboxEvent *event)
{
	char		expected[256];

	snprintf(expected, sizeof(expected), "{\"subscription\": \"%s\"}", subscription->name);
	return event->body != NULL && strcmp(expected, event->body) == 0;
}

/*
 * Between two lanes nothing may raise: some would have the event, and get it again when it is routed anew.  So cancellation waits (ending does not), and if memory runs out the worker
 * ends, and the next one begins at the cursors.
 */
static bool
fulfils(JsonPath *filter, OutboxChunk *chunk, int index)
{
	static MemoryContext scratch = NULL;
	volatile bool result = false;

	HOLD_CANCEL_INTERRUPTS();
	PG_TRY();
	{
		Jsonb	   *payload = outbox_chunk_payload(chunk, index);

		if (payload != NULL)
		{
			MemoryContext old;

			if (scratch == NULL)
				scratch = AllocSetContextCreate(TopMemoryContext, "outbox filter", ALLOCSET_DEFAULT_SIZES);
			old = MemoryContextSwitchTo(scratch);
			result = outbox_filter_matches(filter, payload);
			MemoryContextSwitchTo(old);
			MemoryContextReset(scratch);
		}
	}
	PG_CATCH();
	{
		EmitErrorReport();
		proc_exit(1);
	}
	PG_END_TRY();
	RESUME_CANCEL_INTERRUPTS();
	return result;
}

static bool
is_of_type(const OutboxMatch *match, const char *type)
{
	for (int i = 0; i < match->n_types; i++)
	{
		if (outbox_pattern_matches(match->types[i], type))
			return true;
	}
	return false;
}

bool
outbox_subscription_wants(const OutboxSubscription *subscription, OutboxChunk *chunk, int index)
{
	const OutboxEvent *event = &chunk->events[index].event;
	const OutboxMatch *match = &subscription->match;

	/* nobody knows whose it was: it is a dead letter for everybody */
	if (event->unreadable)
		return true;
	if (strcmp(event->type, OUTBOX_PING_TYPE) == 0)
		return is_pinged(subscription, event);

	for (int i = 0; i < subscription->n_earlier; i++)
	{
		if (outbox_snapshot_sees(subscription->earlier[i].until, event->xid))
		{
			match = &subscription->earlier[i];
			break;
		}
	}
	if (subscription->has_start_after &&
		memcmp(&event->log_id, &subscription->start_after, sizeof(pg_uuid_t)) < 0)
		return false;
	if (match->tenant != NULL && (event->tenant == NULL || strcmp(match->tenant, event->tenant) != 0))
		return false;
	return is_of_type(match, event->type) && (match->filter == NULL || fulfils(match->filter, chunk, index));
}

bool
outbox_subscription_needs_bodies(const OutboxSubscription *subscription)
{
	bool		needs = !subscription->pull || subscription->match.filter != NULL;

	for (int i = 0; i < subscription->n_earlier && !needs; i++)
		needs = subscription->earlier[i].filter != NULL;
	return needs;
}

bool
outbox_subscription_may_want(const OutboxSubscription *subscription, const OutboxChunk *chunk)
{
	const OutboxMatch *match = &subscription->match;

	if (chunk->for_all || subscription->n_earlier > 0)
		return true;
	if (match->tenant != NULL && !outbox_digest_may_have(&chunk->tenants, match->tenant_hash))
		return false;
	if (!match->exact)
		return true;
	for (int i = 0; i < match->n_types; i++)
	{
		if (outbox_digest_may_have(&chunk->types, match->type_hashes[i]))
			return true;
	}
	return false;
}
