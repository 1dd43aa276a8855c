import android.content.Context
import android.graphics.Bitmap
import kotlinx.coroutines.runBlocking
import org.lightningprune.AsyncRunner
import org.lightningprune.ProgramRunner
import org.lightningprune.logic.GrayImage
import org.lightningprune.logic.ModelException
import org.lightningprune.logic.Reading

/** Loads what lies in the assets and runs it; prints what an app would show. */
fun main() {
    try {
        ProgramRunner.load(Context()).use { runner ->
            val image = GrayImage(8, 8, FloatArray(64) { if (it == 1) 3f else 0f })
            println(runner.classify(image).answer)
            val colors = IntArray(64) { if (it == 61) 0xffffff else 0 }
            val bitmap = Bitmap.createBitmap(colors, 8, 8, Bitmap.Config.ARGB_8888)
            println(runner.classify(bitmap, 180).answer)
            println(asynchronously(bitmap))
            println("${runner.benchmark(3).runs} runs")
            runner.run(listOf(FloatArray(64)), listOf(listOf(2, 1, 8, 8)))
        }
    } catch (error: ModelException) {
        println("message: ${error.message}")
    }
}

/** What the asynchronous runner reads, and whether it kept away from the caller's thread. */
fun asynchronously(bitmap: Bitmap): String = AsyncRunner(Context()).use { runner ->
    runBlocking {
        val away = runner.ask { Thread.currentThread() } != Thread.currentThread()
        val reading = runner.read(bitmap, 180).reading as Reading.Classes
        "${reading.answer} on a thread of its own: $away"
    }
}
