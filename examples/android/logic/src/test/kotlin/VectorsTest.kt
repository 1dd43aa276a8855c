import java.io.File
import org.junit.Test

class VectorsTest {
    @Test
    fun everySection() {
        for (check in VectorChecks(File("../../shared/vectors.json")).all.values) check()
    }
}
