/*
 * Event types and the patterns that match them.
 *
 * Works on bytes.  A byte above 0x7F is part of a printable character in every server encoding, but for the C1 controls (U+0080 to U+009F) of Unicode and ISO 8859: the only
 * place that asks for the encoding.
 * Matching looks at words from left to right and remembers one place to go back to, that of the last `**`; going back further could never help,
 * because an earlier `**` has already found its shortest match.  So the time is at most the product of the numbers of words.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "pattern.h"

#define MAX_TYPE 255

/* The first character beyond the word that begins here. */
static const char *
word_end(const char *word)
{
	while (*word != '\0' && *word != '.')
		word++;
	return word;
}

/* The word after the one that ends here; NULL if that was the last. */
static const char *
next_word(const char *end)
{
	return *end == '.' ? end + 1 : NULL;
}

/* Is the byte at `i` the last one of a C1 control? */
static bool
is_c1(const char *text, size_t i)
{
	unsigned char c = (unsigned char) text[i];

	if (c < 0x80 || c > 0x9F)
		return false;
	switch (GetDatabaseEncoding())
	{
		case PG_UTF8:
			return i > 0 && (unsigned char) text[i - 1] == 0xC2;
		case PG_LATIN1:
		case PG_LATIN2:
		case PG_LATIN3:
		case PG_LATIN4:
		case PG_LATIN5:
		case PG_LATIN6:
		case PG_LATIN7:
		case PG_LATIN8:
		case PG_LATIN9:
		case PG_LATIN10:
		case PG_ISO_8859_5:
		case PG_ISO_8859_6:
		case PG_ISO_8859_7:
		case PG_ISO_8859_8:
			return true;
		default:
			return false;
	}
}

/* What is wrong with the characters of a type or pattern, or with the places of its dots. */
static const char *
words_problem(const char *text, size_t size)
{
	if (size == 0)
		return "It is empty.";
	if (size > MAX_TYPE)
		return "It is longer than 255 bytes.";

	for (size_t i = 0; i < size; i++)
	{
		unsigned char c = (unsigned char) text[i];

		if (c <= ' ' || c == 0x7F || is_c1(text, i))
			return "It contains white space or a control character.";
		if (c == '.' && (i == 0 || i == size - 1 || text[i - 1] == '.'))
			return "It contains an empty word: words are separated by single dots.";
	}
	return NULL;
}

const char *
outbox_type_problem(const char *type, size_t size)
{
	const char *problem = words_problem(type, size);

	if (problem == NULL && memchr(type, '*', size) != NULL)
		return "It contains an asterisk, which is reserved for patterns.";
	return problem;
}

const char *
outbox_pattern_problem(const char *pattern, size_t size)
{
	const char *problem = words_problem(pattern, size);
	size_t		start = 0;

	if (problem != NULL)
		return problem;

	for (size_t i = 0; i <= size; i++)
	{
		if (i < size && pattern[i] != '.')
			continue;

		/* a word with an asterisk is `*` or `**` */
		if (memchr(pattern + start, '*', i - start) != NULL &&
			!(i - start == 1) && !(i - start == 2 && pattern[start] == '*' && pattern[start + 1] == '*'))
			return "An asterisk stands for whole words: use * for exactly one word and ** for any number of words.";
		start = i + 1;
	}
	return NULL;
}

bool
outbox_pattern_matches(const char *pattern, const char *type)
{
	const char *resume_pattern = NULL;	/* what follows the last `**` … */
	const char *resume_type = NULL; /* … and the first word it has not swallowed */
	bool		any = false;	/* a `**` was seen */

	while (type != NULL)
	{
		const char *type_end = word_end(type);

		if (pattern != NULL)
		{
			const char *pattern_end = word_end(pattern);
			size_t		length = pattern_end - pattern;

			if (length == 2 && memcmp(pattern, "**", 2) == 0)
			{
				any = true;
				pattern = resume_pattern = next_word(pattern_end);
				resume_type = type;
				continue;
			}
			if ((length == 1 && *pattern == '*') ||
				(length == (size_t) (type_end - type) && memcmp(pattern, type, length) == 0))
			{
				pattern = next_word(pattern_end);
				type = next_word(type_end);
				continue;
			}
		}

		/* no match here: let the last `**` swallow one word more */
		if (!any)
			return false;
		resume_type = next_word(word_end(resume_type));
		type = resume_type;
		pattern = resume_pattern;
	}

	/* what is left of the pattern must be content with nothing */
	while (pattern != NULL)
	{
		const char *pattern_end = word_end(pattern);

		if (pattern_end - pattern != 2 || memcmp(pattern, "**", 2) != 0)
			return false;
		pattern = next_word(pattern_end);
	}
	return true;
}
