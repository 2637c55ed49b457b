/*
 * What may stand in an HTTP header.
 *
 * Producers hand us names and values, and a receiver's parser is the last thing between them and a smuggled request.  So
 * the rule here is the grammar of RFC 9110, nothing more lenient, spelled as tables and loops over bytes: no locale, no NUL-terminated
 * strings, no allocation.  The same functions judge an event when it enters the log and again when it leaves, so a row that got into the log some other
 * way cannot do on the wire what enqueue() would have refused.
 */
#include "field.h"

#include <string.h>
#include <strings.h>

#define NAME_MAX_SIZE 255
#define VALUE_MAX_SIZE 8192

/* RFC 9110 §5.6.2: tchar.  ASCII by value, because isalnum() asks the locale. */
static bool
is_token_char(unsigned char c)
{
	if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
		return true;
	return c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL;
}

bool
outbox_field_name_valid(const char *name, size_t size)
{
	if (size == 0 || size > NAME_MAX_SIZE)
		return false;
	for (size_t i = 0; i < size; i++)
		if (!is_token_char((unsigned char) name[i]))
			return false;
	return true;
}

static bool
is_white(char c)
{
	return c == ' ' || c == '\t';
}

bool
outbox_field_value_valid(const char *value, size_t size)
{
	if (size > VALUE_MAX_SIZE)
		return false;
	if (size > 0 && (is_white(value[0]) || is_white(value[size - 1])))
		return false;
	for (size_t i = 0; i < size; i++)
	{
		unsigned char c = (unsigned char) value[i];

		/* CR, LF and NUL end a field for one parser or another; DEL is a control as well */
		if ((c < 0x20 && c != '\t') || c == 0x7f)
			return false;
	}
	return true;
}

/*
 * Names an event may not set, with the reason.  A trailing '-' reserves the prefix.
 */
static const char *const reserved[] = {
	/* ours: identity, signature and attributes must not be forged by a payload's author */
	"webhook-",
	"ce-",
	"content-type",
	"traceparent",
	"user-agent",

	/* the connection's: RFC 9110 §7.6.1 and RFC 9112 §6; a second copy is how requests are smuggled */
	"host",
	"content-length",
	"transfer-encoding",
	"connection",
	"keep-alive",
	"proxy-",
	"te",
	"trailer",
	"upgrade",

	/* would change how the exchange runs: wait for 100, compressed answers we do not read, cookies kept by nobody */
	"expect",
	"accept-encoding",
	"cookie",

	/* libcurl reads it as a request for HTTP/2 cleartext upgrade */
	"http2-settings",
};

bool
outbox_field_name_reserved(const char *name, size_t size)
{
	for (size_t i = 0; i < sizeof(reserved) / sizeof(reserved[0]); i++)
	{
		size_t		length = strlen(reserved[i]);
		bool		prefix = reserved[i][length - 1] == '-';

		if ((prefix ? size >= length : size == length) && strncasecmp(name, reserved[i], length) == 0)
			return true;
	}
	return false;
}

/* Lower-case hexadecimal (W3C Trace Context §3.2.2: upper case is invalid); *zero: were all digits 0? */
static bool
is_lower_hex(const char *text, size_t size, bool *zero)
{
	*zero = true;
	for (size_t i = 0; i < size; i++)
	{
		if (!((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f')))
			return false;
		if (text[i] != '0')
			*zero = false;
	}
	return true;
}

/* version "-" trace-id "-" parent-id "-" flags; a later version may append "-" and more (W3C Trace Context §3.2, §3.2.4). */
bool
outbox_traceparent_valid(const char *value, size_t size)
{
	enum
	{
		TRACE = 3, PARENT = 36, FLAGS = 53, END = 55
	};
	bool		zero;

	if (size < END || value[TRACE - 1] != '-' || value[PARENT - 1] != '-' || value[FLAGS - 1] != '-')
		return false;
	if (!is_lower_hex(value, 2, &zero) || memcmp(value, "ff", 2) == 0)
		return false;
	if (size > END && (zero || value[END] != '-' || !outbox_field_value_valid(value, size)))
		return false;
	if (!is_lower_hex(value + TRACE, 32, &zero) || zero)
		return false;
	if (!is_lower_hex(value + PARENT, 16, &zero) || zero)
		return false;
	return is_lower_hex(value + FLAGS, 2, &zero);
}
