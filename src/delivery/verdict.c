/*
 * What an attempt's outcome means.
 *
 * Two pure judgements: what to do with an event after an exchange, and what a Retry-After field asks for.  Neither reads a clock, a locale or a random
 * source, and neither overflows whatever it is given: delays are computed as doubles and clamped before they become integers, sums saturate.
 *
 * The order of the rules matters and is the order of the code: success; gone; what no retry can mend; too many attempts; too long ago; otherwise again.
 */
#include "verdict.h"

#include <stddef.h>
#include <string.h>

#define SECOND INT64_C(1000000)

const char *
outbox_outcome_name(OutboxOutcome outcome)
{
	static const char *const names[] = {
		[OUTBOX_DELIVERED] = "delivered",
		[OUTBOX_HTTP_3XX] = "http_3xx",
		[OUTBOX_HTTP_4XX] = "http_4xx",
		[OUTBOX_HTTP_5XX] = "http_5xx",
		[OUTBOX_GONE] = "gone",
		[OUTBOX_TIMEOUT] = "timeout",
		[OUTBOX_DNS] = "dns",
		[OUTBOX_CONNECT] = "connect",
		[OUTBOX_TLS] = "tls",
		[OUTBOX_PROTOCOL] = "protocol",
		[OUTBOX_BLOCKED] = "blocked",
		[OUTBOX_BAD_REQUEST] = "bad_request",
		[OUTBOX_INTERNAL] = "internal",
		[OUTBOX_NACK] = "nack",
		[OUTBOX_LEASE_EXPIRED] = "lease_expired",
	};

	return names[outcome];
}

/* Why this outcome needs no second try; NULL: it may get one. */
static const char *
fatal_reason(OutboxOutcome outcome, int status, const OutboxRetryPolicy *policy)
{
	if (outcome == OUTBOX_BLOCKED)
		return "blocked_address";
	if (outcome == OUTBOX_BAD_REQUEST)
		return "bad_request";
	if (outcome == OUTBOX_INTERNAL)
		return "internal";
	for (int i = 0; i < policy->n_fatal_statuses; i++)
		if (status != 0 && policy->fatal_statuses[i] == status)
			return "fatal_status";
	return NULL;
}

/* base * factor^(attempts - 1), at most max.  Ends early: a growing delay reaches max in few steps, a shrinking one zero. */
static double
planned_delay(int attempts, const OutboxRetryPolicy *policy)
{
	double		delay = (double) policy->base;
	double		max = (double) policy->max;

	for (int i = 1; i < attempts && delay > 0 && delay < max && policy->factor != 1.0; i++)
		delay *= policy->factor;
	return delay < max ? delay : max;
}

/* The wait before the next attempt, 0 … max. */
static int64_t
delay_after(int attempts, int64_t retry_after, double dice, const OutboxRetryPolicy *policy)
{
	double		delay = planned_delay(attempts, policy);
	int64_t		wait;

	delay *= 1.0 + policy->jitter * (2.0 * dice - 1.0);
	if (!(delay > 0))			/* also when an absurd policy made it NaN */
		wait = 0;
	else if (delay >= (double) policy->max)
		wait = policy->max;
	else
		wait = (int64_t) delay;

	/* RFC 9110 §10.2.3: the receiver may ask for more, never for longer than we are prepared to wait */
	if (retry_after > wait)
		wait = retry_after < policy->max ? retry_after : policy->max;
	return wait;
}

static int64_t
saturated_sum(int64_t a, int64_t b)
{
	int64_t		sum;

	if (__builtin_add_overflow(a, b, &sum))
		return b > 0 ? INT64_MAX : INT64_MIN;
	return sum;
}

/* Does `at` lie give_up_after or more behind first_at? */
static bool
too_late(int64_t first_at, int64_t at, const OutboxRetryPolicy *policy)
{
	return policy->give_up_after > 0 && at >= saturated_sum(first_at, policy->give_up_after);
}

static OutboxVerdict
dead(const char *reason)
{
	return (OutboxVerdict) {.decision = OUTBOX_DEAD, .reason = reason};
}

OutboxVerdict
outbox_verdict(OutboxOutcome outcome, int status, int attempts, int64_t first_at, int64_t now,
			   int64_t retry_after, double dice, const OutboxRetryPolicy *policy)
{
	const char *reason;
	int64_t		at;

	if (outcome == OUTBOX_DELIVERED)
		return (OutboxVerdict) {.decision = OUTBOX_DONE};
	if (outcome == OUTBOX_GONE)
		return (OutboxVerdict) {.decision = OUTBOX_DISABLE};

	reason = fatal_reason(outcome, status, policy);
	if (reason != NULL)
		return dead(reason);
	if (attempts >= policy->max_attempts)
		return dead("max_attempts");

	/* An attempt that would begin after the end is not made: the dead letter is there now, not hours later. */
	at = saturated_sum(now, delay_after(attempts, retry_after, dice, policy));
	if (too_late(first_at, at, policy))
		return dead("give_up_after");
	return (OutboxVerdict) {.decision = OUTBOX_RETRY, .at = at};
}

/*
 * HTTP-date.  A cursor over the text; every reader returns false, and the date is refused, when its piece is not exactly there.
 */
typedef struct Date
{
	int			year;
	int			month;			/* 1 … 12 */
	int			day;
	int			hour;
	int			minute;
	int			second;			/* 60: a leap second, RFC 5322 §3.3 */
} Date;

static bool
read_literal(const char **text, const char *literal)
{
	size_t		size = strlen(literal);

	if (strncmp(*text, literal, size) != 0)
		return false;
	*text += size;
	return true;
}

static bool
read_digits(const char **text, int n, int *value)
{
	*value = 0;
	for (int i = 0; i < n; i++, (*text)++)
	{
		if (**text < '0' || **text > '9')
			return false;
		*value = *value * 10 + (**text - '0');
	}
	return true;
}

/* One of n words; *found counts from 0. */
static bool
read_word(const char **text, const char *const *words, int n, int *found)
{
	for (*found = 0; *found < n; (*found)++)
		if (read_literal(text, words[*found]))
			return true;
	return false;
}

static bool
read_month(const char **text, int *month)
{
	static const char *const months[] = {
		"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"
	};

	if (!read_word(text, months, 12, month))
		return false;
	(*month)++;
	return true;
}

static bool
read_time(const char **text, Date *date)
{
	return read_digits(text, 2, &date->hour) && read_literal(text, ":") &&
		read_digits(text, 2, &date->minute) && read_literal(text, ":") && read_digits(text, 2, &date->second);
}

/* "Sun, 06 Nov 1994 08:49:37 GMT" from behind the comma: what senders must generate. */
static bool
read_imf_fixdate(const char **text, Date *date)
{
	return read_digits(text, 2, &date->day) && read_literal(text, " ") && read_month(text, &date->month) && read_literal(text, " ") &&
		read_digits(text, 4, &date->year) && read_literal(text, " ") && read_time(text, date) && read_literal(text, " GMT");
}

/* Days from 1970-01-01 to a date of the proleptic Gregorian calendar: eras of 400 years, years that begin in March. */
static int64_t
days_from_civil(int year, int month, int day)
{
	int64_t		y = year - (month <= 2);
	int64_t		era = y / 400;
	int64_t		year_of_era = y - era * 400;
	int64_t		day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

	return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719468;
}

/* RFC 9110 §5.6.7: two digits that seem to be more than 50 years ahead mean the most recent past year with those digits. */
static int
full_year(int two_digits, int64_t now_unix)
{
	int			this_year = (int) (1970 + now_unix / INT64_C(31556952));	/* mean Gregorian year: off by a day at most */
	int			year = this_year - this_year % 100 + two_digits;

	return year > this_year + 50 ? year - 100 : year;
}

/* "Sunday, 06-Nov-94 08:49:37 GMT" from behind the comma. */
static bool
read_rfc850_date(const char **text, int64_t now_unix, Date *date)
{
	int			two_digits;

	if (!(read_digits(text, 2, &date->day) && read_literal(text, "-") && read_month(text, &date->month) && read_literal(text, "-") &&
		  read_digits(text, 2, &two_digits) && read_literal(text, " ") && read_time(text, date) && read_literal(text, " GMT")))
		return false;
	date->year = full_year(two_digits, now_unix);
	return true;
}

/* "Sun Nov  6 08:49:37 1994" from behind the day's name. */
static bool
read_asctime_date(const char **text, Date *date)
{
	if (!(read_month(text, &date->month) && read_literal(text, " ")))
		return false;
	if (read_literal(text, " ") ? !read_digits(text, 1, &date->day) : !read_digits(text, 2, &date->day))
		return false;
	return read_literal(text, " ") && read_time(text, date) && read_literal(text, " ") && read_digits(text, 4, &date->year);
}

static bool
is_date(const Date *date)
{
	static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	bool		leap = date->year % 4 == 0 && (date->year % 100 != 0 || date->year % 400 == 0);
	int			last = days[date->month - 1] + (date->month == 2 && leap);

	return date->day >= 1 && date->day <= last && date->hour <= 23 && date->minute <= 59 && date->second <= 60;
}

/* The name of the day is required, and not compared with the date: nothing depends on it. */
static bool
read_http_date(const char *text, int64_t now_unix, int64_t *unix_seconds)
{
	static const char *const long_days[] = {"Monday, ", "Tuesday, ", "Wednesday, ", "Thursday, ", "Friday, ", "Saturday, ", "Sunday, "};
	static const char *const fix_days[] = {"Mon, ", "Tue, ", "Wed, ", "Thu, ", "Fri, ", "Sat, ", "Sun, "};
	static const char *const short_days[] = {"Mon ", "Tue ", "Wed ", "Thu ", "Fri ", "Sat ", "Sun "};
	int			day_name;
	bool		understood;
	Date		date;

	if (read_word(&text, fix_days, 7, &day_name))
		understood = read_imf_fixdate(&text, &date);
	else if (read_word(&text, long_days, 7, &day_name))
		understood = read_rfc850_date(&text, now_unix, &date);
	else if (read_word(&text, short_days, 7, &day_name))
		understood = read_asctime_date(&text, &date);
	else
		understood = false;
	if (!understood || *text != '\0' || !is_date(&date))
		return false;
	*unix_seconds = days_from_civil(date.year, date.month, date.day) * 86400 + date.hour * 3600 + date.minute * 60 + date.second;
	return true;
}

/* delta-seconds = 1*DIGIT, saturating: "99999999999999999999" is a long time, not an error. */
static bool
read_delta(const char *text, int64_t *seconds)
{
	*seconds = 0;
	if (*text == '\0')
		return false;
	for (; *text != '\0'; text++)
	{
		if (*text < '0' || *text > '9')
			return false;
		if (*seconds <= INT64_MAX / SECOND)
			*seconds = *seconds * 10 + (*text - '0');
	}
	return true;
}

int64_t
outbox_retry_after(const char *value, int64_t now_unix)
{
	int64_t		seconds;
	int64_t		then;

	if (value == NULL)
		return -1;
	if (!read_delta(value, &seconds))
	{
		if (!read_http_date(value, now_unix, &then))
			return -1;
		if (then < now_unix)
			return -1;
		if (__builtin_sub_overflow(then, now_unix, &seconds))
			seconds = INT64_MAX;
	}
	return seconds > INT64_MAX / SECOND ? INT64_MAX : seconds * SECOND;
}
