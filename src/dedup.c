/*
 * Deduplication when enqueueing.
 *
 * A row of outbox.dedup per key, unique for type and tenant, written in the transaction of the event it stands for: so it is there if and only if that one is.  A key that is older than
 * outbox.dedup_window counts no more; maintenance removes it, or the next event that uses it.
 *
 * A duplicate is found before anything is written, even an xid is assigned.  Only then are ids taken, and the keys claimed.
 *
 * The keys of one call are claimed in their own order, not in that of the events: so two calls with the same keys never wait for each other in a circle.
 */
#include "postgres.h"

#include "dedup.h"
#include "miscadmin.h"
#include "once.h"
#include "settings.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

/* The columns of outbox.dedup */
typedef enum DedupColumn
{
	DEDUP_KEY = 1,
	DEDUP_TYPE,
	DEDUP_TENANT,				/* the empty string: none, as no tenant's name is empty */
	DEDUP_EVENT_ID,
	DEDUP_AT
} DedupColumn;

typedef struct Claim
{
	const OutboxNewEvent *event;
	int			number;
	bool		look;			/* somebody may have the key */
} Claim;

struct OutboxDedup
{
	OutboxOnce *once;
	TupleTableSlot *row;
	TupleTableSlot *holder;
	int			n;
	Claim		claims[FLEXIBLE_ARRAY_MEMBER];
};

static int
compare_texts(const text *a, const text *b)
{
	Size		left = a == NULL ? 0 : VARSIZE_ANY_EXHDR(a);
	Size		right = b == NULL ? 0 : VARSIZE_ANY_EXHDR(b);
	int			result = left == 0 || right == 0 ? 0 : memcmp(VARDATA_ANY(a), VARDATA_ANY(b), Min(left, right));

	return result != 0 ? result : (left > right) - (left < right);
}

static int
compare_keys(const OutboxNewEvent *left, const OutboxNewEvent *right)
{
	int			result = compare_texts(left->dedup_key, right->dedup_key);

	if (result == 0)
		result = compare_texts(left->type, right->type);
	if (result == 0)
		result = compare_texts(left->tenant, right->tenant);
	return result;
}

/* Of one key, the earliest event comes first. */
static int
compare_claims(const void *a, const void *b)
{
	const Claim *left = a;
	const Claim *right = b;
	int			result = compare_keys(left->event, right->event);

	return result != 0 ? result : left->number - right->number;
}

OutboxDedup *
outbox_dedup_begin(const OutboxNewEvent *events, int n)
{
	OutboxDedup *dedup = palloc(offsetof(OutboxDedup, claims) + n * sizeof(Claim));

	dedup->n = 0;
	for (int i = 0; i < n; i++)
		if (events[i].dedup_key != NULL)
			dedup->claims[dedup->n++] = (Claim) {.event = &events[i], .number = i};
	if (dedup->n == 0)
	{
		pfree(dedup);
		return NULL;
	}
	qsort(dedup->claims, dedup->n, sizeof(Claim), compare_claims);
	dedup->once = outbox_once_open(get_relname_relid("dedup", outbox_catalog_required()->schema));
	dedup->row = outbox_once_row(dedup->once);
	dedup->holder = outbox_once_holder(dedup->once);
	return dedup;
}

void
outbox_dedup_end(OutboxDedup *dedup)
{
	outbox_once_close(dedup->once);
	pfree(dedup);
}

/* Without an id: just the key. */
static void
fill(TupleTableSlot *row, const OutboxNewEvent *event, const pg_uuid_t *id)
{
	ExecClearTuple(row);
	memset(row->tts_isnull, true, sizeof(bool) * row->tts_tupleDescriptor->natts);
	memset(row->tts_isnull, false, sizeof(bool) * (id != NULL ? DEDUP_AT : DEDUP_TENANT));
	row->tts_values[DEDUP_KEY - 1] = PointerGetDatum(event->dedup_key);
	row->tts_values[DEDUP_TYPE - 1] = PointerGetDatum(event->type);
	row->tts_values[DEDUP_TENANT - 1] = PointerGetDatum(event->tenant != NULL ? event->tenant : cstring_to_text(""));
	row->tts_values[DEDUP_EVENT_ID - 1] = UUIDPGetDatum(id);
	row->tts_values[DEDUP_AT - 1] = TimestampTzGetDatum(event->created_at);
	ExecStoreVirtualTuple(row);
}

static Datum
column(TupleTableSlot *holder, DedupColumn number)
{
	bool		isnull;
	Datum		value = slot_getattr(holder, number, &isnull);

	Assert(!isnull);
	return value;
}

/* Asked of the clock each time: the call may have waited for long. */
static bool
is_expired(TupleTableSlot *holder)
{
	return DatumGetTimestampTz(column(holder, DEDUP_AT)) <= GetCurrentTimestamp() - outbox_dedup_window * USECS_PER_SEC;
}

/* Is the key of what is in the row taken?  *id becomes that of the event that has it; of one that counts no more the row is in holder. */
static bool
is_taken(OutboxDedup *dedup, pg_uuid_t *id, bool *expired)
{
	bool		own;

	*expired = false;
	if (!outbox_once_find(dedup->once, dedup->row, dedup->holder, &own))
		return false;
	*expired = !own && is_expired(dedup->holder);
	if (*expired)
		return false;
	*id = *DatumGetUUIDP(column(dedup->holder, DEDUP_EVENT_ID));
	return true;
}

void
outbox_dedup_find(OutboxDedup *dedup, pg_uuid_t *ids, bool *duplicate)
{
	for (int i = 0; i < dedup->n; i++)
	{
		Claim	   *claim = &dedup->claims[i];
		bool		expired;

		CHECK_FOR_INTERRUPTS();
		fill(dedup->row, claim->event, NULL);
		duplicate[claim->number] = is_taken(dedup, &ids[claim->number], &expired);
		claim->look = expired || (i > 0 && compare_keys(claim->event, dedup->claims[i - 1].event) == 0);
	}
}

/* A key that was free a moment ago is claimed without another look: who loses the race is told so by the index, and looks then. */
void
outbox_dedup_claim(OutboxDedup *dedup, pg_uuid_t *ids, bool *duplicate)
{
	for (int i = 0; i < dedup->n; i++)
	{
		const Claim *claim = &dedup->claims[i];
		pg_uuid_t	id = ids[claim->number];
		bool		look = claim->look;

		while (!duplicate[claim->number])
		{
			bool		expired = false;

			CHECK_FOR_INTERRUPTS();
			fill(dedup->row, claim->event, &id);
			if (look)
				duplicate[claim->number] = is_taken(dedup, &ids[claim->number], &expired);
			if (expired)
				outbox_once_remove(dedup->once, dedup->holder);
			else if (!duplicate[claim->number] && outbox_once_insert(dedup->once, dedup->row))
				break;
			look = true;
		}
	}
}
