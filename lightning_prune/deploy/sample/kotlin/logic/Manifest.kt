package org.lightningprune.logic

import java.io.InputStream
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.security.MessageDigest

/** A file that the manifest describes: the program or one of its weight files. */
data class FileEntry(val name: String, val sha256: String, val sizeBytes: Long)

/** One input or output: a size that may vary has a range in [dynamic]. */
data class TensorSpec(
    val name: String,
    val shape: List<Int>,
    val dtype: String,
    val dynamic: Map<Int, IntRange> = emptyMap()
) {
    /** Number of values at the shape of the example. */
    val count: Int get() = shape.fold(1) { product, size -> product * size }

    override fun toString(): String = "$name $shape $dtype"

    /** Throws [ModelException] where [count] values in the shape [given] are not what it takes. */
    fun check(count: Int, given: List<Int>) {
        val fits = given.size == shape.size && given.indices.all { dimension ->
            val range = dynamic[dimension]
            if (range != null) given[dimension] in range else given[dimension] == shape[dimension]
        }
        if (!fits || count != given.fold(1) { product, size -> product * size }) {
            throw ModelException("input $this: got $count values for shape $given")
        }
    }
}

/** An output that is an input of the next call; it holds [first] throughout at the first one. */
data class Feed(val input: String, val output: String, val first: Float)

/** A buffer that the program keeps from call to call, and the methods that write it. */
data class StateEntry(val name: String, val methods: List<String>)

data class MethodSpec(val inputs: List<TensorSpec>, val outputs: List<TensorSpec>, val feeds: List<Feed> = emptyList())

/**
 * What stands beside a .pte: which bytes it has, and what its methods take and give.
 */
data class Manifest(
    val program: FileEntry,
    val data: List<FileEntry>,
    val methods: Map<String, MethodSpec>,
    val labels: List<String>,
    val backend: String,
    val model: String,
    val picture: PictureSpec,
    val state: List<StateEntry> = emptyList()
) {
    /** The method of this name. Throws [ModelException] where there is none. */
    fun method(name: String): MethodSpec =
        methods[name] ?: throw ModelException("the program has no method $name, only ${methods.keys.joinToString()}")

    companion object {
        const val FORMAT = 1L
        private val HEX = Regex("[0-9a-f]{64}")

        /** Read the bytes of a model.json. Throws [ModelException] where it is malformed, newer, or was changed. */
        fun parse(bytes: ByteArray): Manifest {
            val fields = Fields(Json.parse(decode(bytes)), "the manifest")
            val format = fields.whole("format")
            if (format != FORMAT) {
                throw ModelException("the manifest is of format $format, and this app reads $FORMAT: update the app")
            }
            checkDigest(bytes, fields.text("digest"))
            return Manifest(
                FileEntry(fields.text("program"), hash(fields), fields.size("size_bytes")),
                fields.list("data").map { file ->
                    FileEntry(file.text("file"), hash(file), file.size("size_bytes"))
                },
                fields.inner("methods").map { _, method ->
                    method(method)
                },
                fields.texts("labels"),
                fields.inner("backend").text("name"),
                fields.inner("model").textOr("class", "model"),
                if (fields.has("picture")) picture(fields.inner("picture")) else PictureSpec(),
                if (fields.has("state")) fields.list("state").map { StateEntry(it.text("name"), it.texts("methods")) } else emptyList()
            )
        }

        private fun method(fields: Fields): MethodSpec {
            val inputs = fields.list("inputs").map { spec(it) }
            val outputs = fields.list("outputs").map { spec(it) }
            val feeds = if (fields.has("feeds")) fields.list("feeds").map { feed(it, inputs, outputs) } else emptyList()
            return MethodSpec(inputs, outputs, feeds)
        }

        private fun feed(fields: Fields, inputs: List<TensorSpec>, outputs: List<TensorSpec>): Feed {
            val feed = Feed(fields.text("input"), fields.text("output"), fields.number("first").toFloat())
            val input = inputs.singleOrNull { it.name == feed.input }
            val output = outputs.singleOrNull { it.name == feed.output }
            if (input == null || input.shape != output?.shape || input.dtype != output.dtype) {
                throw ModelException("the manifest feeds ${feed.output} into ${feed.input}, which cannot be")
            }
            return feed
        }

        private fun decode(bytes: ByteArray): String = try {
            Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString()
        } catch (error: CharacterCodingException) {
            throw ModelException("the manifest is no UTF-8 text: copy it again")
        }

        private fun hash(fields: Fields): String {
            val hash = fields.text("sha256")
            if (!HEX.matches(hash)) throw ModelException("the manifest holds no sha256 but \"$hash\"")
            return hash
        }

        private fun picture(fields: Fields): PictureSpec = PictureSpec(
            when (val fit = fields.text("fit")) {
                "crop" -> Fit.Crop(if (fields.has("resize")) fields.within("resize", 1..Int.MAX_VALUE) else null)
                "stretch" -> Fit.Stretch
                "pad" -> Fit.Pad(fields.within("fill", 0..255))
                else -> throw ModelException("the manifest fits pictures by \"$fit\", which this app does not know")
            },
            fields.numbers("mean"),
            fields.numbers("std")
        )

        private fun spec(fields: Fields): TensorSpec {
            val shape = fields.sizes("shape")
            val dynamic = if (fields.has("dynamic")) fields.inner("dynamic").ranges(shape.size) else emptyMap()
            return TensorSpec(fields.text("name"), shape, fields.text("dtype"), dynamic)
        }

        private fun checkDigest(bytes: ByteArray, digest: String) {
            val start = if (HEX.matches(digest)) find(bytes, digest.toByteArray()) else -1
            val zeroed = bytes.copyOf()
            if (start >= 0) zeroed.fill(48, start, start + digest.length)
            if (start < 0 || sha256(zeroed) != digest) {
                throw ModelException("the manifest was changed after it was written: copy it again")
            }
        }

        private fun find(bytes: ByteArray, wanted: ByteArray): Int =
            (0..bytes.size - wanted.size).firstOrNull { at -> wanted.indices.all { bytes[at + it] == wanted[it] } } ?: -1

        /** The sha256 of bytes in hexadecimal. */
        fun sha256(bytes: ByteArray): String = hexadecimal(MessageDigest.getInstance("SHA-256").digest(bytes))

        /** Read a stream to its end, handing on each piece. Throws [ModelException] where it is not the file described. */
        fun checkFile(entry: FileEntry, stream: InputStream, keep: (ByteArray, Int) -> Unit = { _, _ -> }) {
            val digest = MessageDigest.getInstance("SHA-256")
            val piece = ByteArray(1 shl 16)
            var size = 0L
            while (true) {
                val count = stream.read(piece)
                if (count < 0) break
                digest.update(piece, 0, count)
                size += count
                keep(piece, count)
            }
            if (size != entry.sizeBytes || hexadecimal(digest.digest()) != entry.sha256) {
                throw ModelException(
                    "${entry.name} is not the file that the manifest describes ($size bytes, ${entry.sizeBytes} expected,"
                        + " or another sha256): copy both files again"
                )
            }
        }

        private fun hexadecimal(bytes: ByteArray): String =
            bytes.joinToString("") { ((it.toInt() and 0xff) + 0x100).toString(16).substring(1) }
    }
}
