import android.content.Context
import android.graphics.Bitmap
import org.lightningprune.ProgramRunner
import org.lightningprune.logic.GrayImage
import org.lightningprune.logic.ModelException

/** Loads what lies in the assets and runs it; prints what an app would show. */
fun main() {
    try {
        ProgramRunner.load(Context()).use { runner ->
            val image = GrayImage(8, 8, FloatArray(64) { if (it == 1) 3f else 0f })
            println(runner.classify(image).answer)
            val colors = IntArray(64) { if (it == 61) 0xffffff else 0 }
            println(runner.classify(Bitmap.createBitmap(colors, 8, 8, Bitmap.Config.ARGB_8888), 180).answer)
            println("${runner.benchmark(3).runs} runs")
            runner.run(listOf(FloatArray(64)), listOf(listOf(2, 1, 8, 8)))
        }
    } catch (error: ModelException) {
        println("message: ${error.message}")
    }
}
