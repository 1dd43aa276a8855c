package org.lightningprune

import android.content.Context
import android.graphics.Bitmap
import java.io.Closeable
import java.io.File
import java.io.IOException
import java.io.InputStream
import org.lightningprune.logic.Answer
import org.lightningprune.logic.ColorImage
import org.lightningprune.logic.GrayImage
import org.lightningprune.logic.ImageInput
import org.lightningprune.logic.Manifest
import org.lightningprune.logic.ModelException
import org.lightningprune.logic.Reading
import org.lightningprune.logic.Scores
import org.lightningprune.logic.Session
import org.lightningprune.logic.TensorSpec
import org.lightningprune.logic.Timing
import org.pytorch.executorch.DType
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** The class of a picture, and the milliseconds that the run took. */
data class Classified(val answer: Answer, val milliseconds: Double)

/** What the program says of a picture, and the milliseconds that the run took. */
data class Read(val reading: Reading, val milliseconds: Double)

/**
 * A program that was checked against its manifest, ready to run. Not for several threads at once.
 *
 * Everything that can be wrong with a file, an input or an output is a [ModelException] with a message to show.
 */
class ProgramRunner private constructor(
    private val file: File,
    private val threads: Int,
    val manifest: Manifest
) : Closeable {
    private val module = telling("${manifest.program.name} cannot be loaded") {
        Module.load(file.path, Module.LOAD_MODE_MMAP, threads).also { for (method in manifest.methods.keys) it.loadMethod(method) }
    }

    /**
     * Run a method and return its outputs as float32.
     *
     * [inputs]: the values of each input in the order of the manifest; whole numbers 0…255 where it takes uint8.
     * [shapes]: their shapes; left out, those of the manifest.
     */
    fun run(
        inputs: List<FloatArray>,
        shapes: List<List<Int>>? = null,
        method: String = "forward"
    ): List<FloatArray> {
        val specs = manifest.method(method).inputs
        if (inputs.size != specs.size || (shapes != null && shapes.size != specs.size)) {
            throw ModelException("$method takes ${specs.size} inputs, got ${inputs.size}")
        }
        val given = specs.mapIndexed { i, spec -> EValue.from(tensor(spec, inputs[i], shapes?.get(i) ?: spec.shape)) }
        val outputs = telling("the program cannot be run") { module.execute(method, *given.toTypedArray()) }
        return outputs.map { values(it) }
    }

    /**
     * Calls in a row, from the first state: what the program gives for the next call goes into it.
     *
     * What it keeps in itself lies where it was loaded: such a session loads it for itself, and is to be closed.
     */
    fun session(method: String = "forward"): Session {
        val spec = manifest.method(method)
        val keeps = manifest.state.filter { method in it.methods }.map { it.name }
        if (keeps.isEmpty()) return Session(spec) { inputs, shapes -> run(inputs, shapes, method) }
        var own = ProgramRunner(file, threads, manifest)
        val restart = {
            val fresh = ProgramRunner(file, threads, manifest)
            own.close()
            own = fresh
        }
        return Session(spec, keeps, restart, { own.close() }) { inputs, shapes -> own.run(inputs, shapes, method) }
    }

    /** The class of a gray picture. */
    fun classify(image: GrayImage): Classified = classified { it.values(image) }

    /** The class of a colour picture, which is turned, resized, fitted and normalised as the manifest says. */
    fun classify(image: ColorImage): Classified = classified { it.values(image) }

    /** The class of a bitmap that [rotation] degrees clockwise (0, 90, 180, 270) turn upright. */
    fun classify(bitmap: Bitmap, rotation: Int = 0): Classified = classify(picture(bitmap, rotation))

    /** What the program says of a colour picture: its class, boxes or regions, whatever the first output tells. */
    fun read(image: ColorImage): Read {
        val input = imageInput()
        val (output, milliseconds) = timed(input, input.values(image))
        val spec = manifest.method("forward").outputs[0]
        val place = input.placement(image)
        return Read(Reading.of(output, spec, manifest.labels, place, input.height, input.width), milliseconds)
    }

    /** What the program says of a bitmap that [rotation] degrees clockwise (0, 90, 180, 270) turn upright. */
    fun read(bitmap: Bitmap, rotation: Int = 0): Read = read(picture(bitmap, rotation))

    private fun classified(values: (ImageInput) -> FloatArray): Classified {
        val input = imageInput()
        val (output, milliseconds) = timed(input, values(input))
        return Classified(Scores.answer(output, manifest.method("forward").outputs[0], manifest.labels), milliseconds)
    }

    private fun imageInput(): ImageInput {
        val method = manifest.method("forward")
        if (method.inputs.size != 1 || method.outputs.isEmpty()) {
            throw ModelException("forward takes ${method.inputs.size} inputs: this screen needs one image")
        }
        return ImageInput(method.inputs[0], manifest.picture)
    }

    private fun timed(input: ImageInput, values: FloatArray): Pair<FloatArray, Double> {
        val start = System.nanoTime()
        val outputs = run(listOf(values), listOf(input.shape()))
        val milliseconds = (System.nanoTime() - start) / 1e6
        if (outputs.isEmpty()) throw ModelException("the program gave nothing")
        return Pair(outputs[0], milliseconds)
    }

    /** Time forward on inputs of zeros. */
    fun benchmark(rounds: Int = 50): Timing {
        val zeros = manifest.method("forward").inputs.map { FloatArray(it.count) }
        return Timing.measure(rounds) { run(zeros) }
    }

    override fun close() = module.close()

    companion object {
        /**
         * Load NAME.pte and NAME.json from the app's assets.
         *
         * The program is copied into the app's folder, since the runtime reads files only, and its size and sha256 are
         * checked before the runtime sees it. [threads]: 0 lets the runtime choose.
         */
        fun load(context: Context, name: String = "model", threads: Int = 1): ProgramRunner {
            val manifest = Manifest.parse(asset(context, "$name.json").use { it.readBytes() })
            if (manifest.data.isNotEmpty()) {
                throw ModelException(
                    "${manifest.program.name} keeps weights in ${manifest.data.joinToString { it.name }}, and the runtime"
                        + " for Android loads one file: export it without external weights"
                )
            }
            return ProgramRunner(installed(context, manifest), threads, manifest)
        }

        /** The pixels of a bitmap that [rotation] degrees clockwise turn upright. */
        fun picture(bitmap: Bitmap, rotation: Int = 0): ColorImage {
            val pixels = IntArray(bitmap.width * bitmap.height)
            bitmap.getPixels(pixels, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
            return ColorImage(bitmap.height, bitmap.width, pixels, rotation)
        }

        private fun asset(context: Context, name: String): InputStream = try {
            context.assets.open(name)
        } catch (error: IOException) {
            throw ModelException("$name is not among the app's assets: add it there, beside the other file of the pair")
        }

        private fun installed(context: Context, manifest: Manifest): File {
            val target = File(context.noBackupFilesDir, "${manifest.program.sha256}.pte")
            if (target.isFile && isWhole(target, manifest)) return target
            val part = File(context.noBackupFilesDir, "${manifest.program.sha256}.part")
            try {
                asset(context, manifest.program.name).use { source ->
                    part.outputStream().use { copy ->
                        Manifest.checkFile(manifest.program, source) { piece, size -> copy.write(piece, 0, size) }
                    }
                }
                if (!part.renameTo(target)) throw IOException("it cannot be renamed")
            } catch (error: IOException) {
                throw ModelException("${manifest.program.name} cannot be copied: ${error.message}")
            } finally {
                part.delete()
            }
            return target
        }

        private fun isWhole(file: File, manifest: Manifest): Boolean = try {
            file.inputStream().use { Manifest.checkFile(manifest.program, it) }
            true
        } catch (error: ModelException) {
            false
        } catch (error: IOException) {
            false
        }

        private fun tensor(spec: TensorSpec, values: FloatArray, shape: List<Int>): Tensor {
            spec.check(values.size, shape)
            val sizes = LongArray(shape.size) { shape[it].toLong() }
            return when (spec.dtype) {
                "float32" -> Tensor.fromBlob(values, sizes)
                "uint8" -> Tensor.fromBlobUnsigned(ByteArray(values.size) { values[it].toInt().toByte() }, sizes)
                "int64" -> Tensor.fromBlob(LongArray(values.size) { values[it].toLong() }, sizes)
                else -> throw ModelException("input $spec: this runner makes float32, uint8 and int64")
            }
        }

        private fun values(output: EValue): FloatArray {
            val tensor = if (output.isTensor) output.toTensor() else throw ModelException("an output is no tensor")
            if (tensor.dtype() != DType.FLOAT) throw ModelException("an output is ${tensor.dtype()}, not float32")
            return tensor.dataAsFloatArray
        }

        /** What the runtime throws as a message; LinkageError: a processor that the library was not built for. */
        internal fun <T> telling(what: String, call: () -> T): T = try {
            call()
        } catch (error: ModelException) {
            throw error
        } catch (error: RuntimeException) {
            throw ModelException("$what: ${error.message}")
        } catch (error: LinkageError) {
            throw ModelException("$what: ExecuTorch runs on arm64-v8a and x86_64 devices (${error.message})")
        }
    }
}
