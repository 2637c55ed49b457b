/*
 * Routing: which lanes may want an event.
 *
 * An index by what subscriptions ask for, so that an event costs a few look-ups, and not a look at each of thousands of them.  It judges nothing: it leaves out only
 * lanes that cannot want the event, and each of the others is asked (outbox_subscription_wants).
 *
 * Each lane is in one place, or under several names of one kind, so that it is never visited twice: under its tenant; without one, under its types, if none has an asterisk;
 * or under the first words of its types, if none of those is one; or among those that are asked about everything.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "fault.h"
#include "routing.h"

typedef struct Entry
{
	uint64		hash;			/* of the name */
	List	   *lanes;
} Entry;

static MemoryContext context;	/* of all of it */
static List *all;
static List *asked_always;
static bool needs_bodies = false;	/* one of them does */
static HTAB *by_tenant;
static HTAB *by_type;
static HTAB *by_word;

static uint64
first_word(const char *type)
{
	return hash_bytes_extended((const unsigned char *) type, strcspn(type, "."), 0);
}

static HTAB *
make_index(const char *name)
{
	HASHCTL		control = {.keysize = sizeof(uint64), .entrysize = sizeof(Entry), .hcxt = context};

	return hash_create(name, 128, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* A lane comes at most once under a name: that of two of its types may be the same. */
static void
add(HTAB *index, uint64 hash, OutboxLane *lane)
{
	bool		found;
	Entry	   *entry = hash_search(index, &hash, HASH_ENTER, &found);

	if (!found)
		entry->lanes = NIL;
	if (entry->lanes == NIL || llast(entry->lanes) != lane)
		entry->lanes = lappend(entry->lanes, lane);
}

static bool
has_first_words(const OutboxMatch *match)
{
	for (int i = 0; i < match->n_types; i++)
	{
		if (match->types[i][0] == '*')
			return false;
	}
	return true;
}

static void
index_lane(OutboxLane *lane)
{
	const OutboxSubscription *subscription = lane->subscription;
	const OutboxMatch *match = &subscription->match;

	if (subscription->n_earlier > 0)	/* until those rules are history */
		asked_always = lappend(asked_always, lane);
	else if (match->tenant != NULL)
		add(by_tenant, match->tenant_hash, lane);
	else if (match->exact)
	{
		for (int i = 0; i < match->n_types; i++)
			add(by_type, match->type_hashes[i], lane);
	}
	else if (has_first_words(match))
	{
		for (int i = 0; i < match->n_types; i++)
			add(by_word, first_word(match->types[i]), lane);
	}
	else
		asked_always = lappend(asked_always, lane);
}

void
outbox_routing_index(List *lanes)
{
	MemoryContext old;
	ListCell   *cell;

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "outbox routing", ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(context);
	by_tenant = make_index("outbox tenants");
	by_type = make_index("outbox types");
	by_word = make_index("outbox first words of types");
	asked_always = NIL;
	old = MemoryContextSwitchTo(context);
	all = list_copy(lanes);
	needs_bodies = false;
	OUTBOX_FAULT("index-half-made");
	foreach(cell, lanes)
	{
		OutboxLane *lane = lfirst(cell);

		index_lane(lane);
		needs_bodies |= outbox_subscription_needs_bodies(lane->subscription);
	}
	MemoryContextSwitchTo(old);
}

bool
outbox_routing_needs_bodies(void)
{
	return needs_bodies;
}

static List *
look_up(HTAB *index, uint64 hash)
{
	Entry	   *entry;

	if (hash_get_num_entries(index) == 0)
		return NIL;
	entry = hash_search(index, &hash, HASH_FIND, NULL);
	return entry == NULL ? NIL : entry->lanes;
}

void
outbox_routing_visit(OutboxChunk *chunk, int index, void (*visit) (OutboxLane *lane, OutboxChunk *chunk, int index))
{
	const OutboxLoggedEvent *logged = &chunk->events[index];
	ListCell   *cell;

	if (logged->for_all)
	{
		foreach(cell, all)
			visit(lfirst(cell), chunk, index);
		return;
	}
	foreach(cell, asked_always)
		visit(lfirst(cell), chunk, index);
	if (logged->event.tenant != NULL)
	{
		foreach(cell, look_up(by_tenant, logged->tenant_hash))
			visit(lfirst(cell), chunk, index);
	}
	foreach(cell, look_up(by_type, logged->type_hash))
		visit(lfirst(cell), chunk, index);
	if (hash_get_num_entries(by_word) > 0)
	{
		foreach(cell, look_up(by_word, first_word(logged->event.type)))
			visit(lfirst(cell), chunk, index);
	}
}
