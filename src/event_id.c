/*
 * Event ids: one clock per database in shared memory, advanced by compare-and-swap.
 *
 * Guarantees that no two calls on one clock return the same clock bits, and that a later call returns more.  It never waits
 * and never goes back: when the system clock stands still or steps back, the id clock runs ahead of it, by a quarter of a
 * microsecond per event.
 */
#include "postgres.h"

#include "event_id.h"
#include "port/pg_bswap.h"
#include "utils/timestamp.h"

#define CLOCK_BITS		60
#define CLOCK_MAX		((UINT64CONST(1) << CLOCK_BITS) - 1)
#define FRACTION_BITS	12
#define FRACTIONS		(UINT64CONST(1) << FRACTION_BITS)	/* per millisecond */

/* RFC 9562: version 7 in the upper half, variant 10 in the lower */
#define VERSION_7		(UINT64CONST(7) << FRACTION_BITS)
#define VARIANT			(UINT64CONST(2) << 62)
#define DRAWN			128			/* random numbers at a time */
#define RANDOM_MASK		((UINT64CONST(1) << 62) - 1)

/* Microseconds from the Unix to the PostgreSQL epoch. */
#define UNIX_TO_POSTGRES ((POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

static void
compose(pg_uuid_t *id, uint64 clock, uint64 random)
{
	uint64		upper = (clock >> FRACTION_BITS) << 16 | VERSION_7 | (clock & (FRACTIONS - 1));
	uint64		lower = VARIANT | (random & RANDOM_MASK);

	upper = pg_hton64(upper);
	lower = pg_hton64(lower);
	memcpy(id->data, &upper, sizeof(upper));
	memcpy(id->data + sizeof(upper), &lower, sizeof(lower));
}

/* The first microsecond that is not before the clock, so that an instant survives the way there and back. */
static TimestampTz
instant(uint64 clock)
{
	uint64		fraction = clock & (FRACTIONS - 1);

	return (TimestampTz) ((clock >> FRACTION_BITS) * 1000 + (fraction * 1000 + FRACTIONS - 1) / FRACTIONS) - UNIX_TO_POSTGRES;
}

/*
 * Cryptographically strong, so that nobody guesses an id from others; drawn in advance, because a draw costs as much as an index entry, however little is drawn.  Nothing
 * is left in the postmaster for its children to share: it makes no ids.
 */
static uint64
draw(void)
{
	static uint64 drawn[DRAWN];
	static int	left = 0;
	uint64		random;

	if (left == 0)
	{
		if (!pg_strong_random(drawn, sizeof(drawn)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values")));
		left = DRAWN;
	}
	random = drawn[--left];
	drawn[left] = 0;			/* none is used twice, nor to be found afterwards */
	return random;
}

void
outbox_event_id_next(pg_atomic_uint64 *clock, pg_uuid_t *id, TimestampTz *now)
{
	uint64		random = draw();
	uint64		system;
	uint64		last;
	uint64		next;

	*now = GetCurrentTimestamp();
	system = outbox_event_id_clock_at(*now);
	last = pg_atomic_read_u64(clock);
	do
	{
		next = Max(system, last + 1);
	} while (!pg_atomic_compare_exchange_u64(clock, &last, next));

	if (next != system)
		*now = instant(next);
	compose(id, next, random);
}

uint64
outbox_event_id_clock(const pg_uuid_t *id)
{
	uint64		upper;

	memcpy(&upper, id->data, sizeof(upper));
	upper = pg_ntoh64(upper);
	return (upper >> 16) << FRACTION_BITS | (upper & (FRACTIONS - 1));
}

bool
outbox_event_id_valid(const pg_uuid_t *id)
{
	return id->data[6] >> 4 == 7 && id->data[8] >> 6 == 2;
}

void
outbox_event_id_lowest(uint64 clock, pg_uuid_t *id)
{
	compose(id, Min(clock, CLOCK_MAX), 0);
}

TimestampTz
outbox_event_id_time(const pg_uuid_t *id)
{
	return instant(outbox_event_id_clock(id) & ~(FRACTIONS - 1));
}

uint64
outbox_event_id_clock_at(TimestampTz at)
{
	uint64		unix_time;

	if (at <= -UNIX_TO_POSTGRES)
		return 0;
	if (TIMESTAMP_IS_NOEND(at))
		return CLOCK_MAX;

	unix_time = (uint64) at + UNIX_TO_POSTGRES;
	return Min((unix_time / 1000) << FRACTION_BITS | (unix_time % 1000) * FRACTIONS / 1000, CLOCK_MAX);
}

void
outbox_event_id_floor(pg_atomic_uint64 *clock, uint64 floor)
{
	uint64		last = pg_atomic_read_u64(clock);

	while (last < floor && !pg_atomic_compare_exchange_u64(clock, &last, floor))
		;
}
